"""What a poll of the delivery feed costs, against a task that lists the whole bucket with boto3's paginator."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from unittest import mock

from benchmarks.bucket import CREDENTIALS, NAME, ListedBucket
from benchmarks.report import Report
from benchmarks.servers import patient_ids

#: Objects in the bucket, and seconds of latency that each request has.
CASES = ((100_000, 0.0), (1_000_000, 0.0), (100_000, 0.08))

OBJECTS_A_PATIENT = 100

_PATH = "d/{projectId}/{healthexPatientId}/"

_NOTES = (
    "Paginator: `list_objects_v2` of boto3 over everything, in one task; it keeps each patient's newest object.",
    "Ours: what `HealthExDeliveryTrigger` does for a poll, with the triggerer's aiobotocore client.",
    "Cold: the first poll of a trigger, with the client's start, without Airflow's imports.",
    "Warm: the next one, which knows where pages ended.",
    "Over loopback, from a server that answers from memory in the same process; latency is per request.",
    f"{OBJECTS_A_PATIENT} objects a patient; one patient in a hundred has a delivery to announce.",
)

#: Patients, requests and seconds of a poll.
Poll = tuple[set[str], int, float]


def run(cases: Sequence[tuple[int, float]] = CASES) -> Report:
    """Poll each bucket three times: with the paginator, cold and warm."""
    rows, ratios = [], []
    _measure(OBJECTS_A_PATIENT, 0.0)  # imports Airflow and its connections, for 12 s
    for objects, latency in cases:
        polls = _measure(objects, latency)
        name = f"{objects:,} objects" + (f", {latency * 1000:g} ms a request" if latency else "")
        rows += [(f"{name}: {how}", f"{requests:,}", f"{seconds:.2f}") for how, (_, requests, seconds) in polls.items()]
        (_, _, theirs), _, (_, _, warm) = polls.values()
        ratios.append(f"{theirs / warm:.1f} x ({name})")
    return Report(
        name="feed",
        question="One poll of a bucket for deliveries that have settled.",
        ratio=f"A warm poll is so many times as fast as the paginator: {', '.join(ratios)}",
        columns=("how", "LISTs", "s"),
        rows=rows,
        notes=_NOTES,
    )


def _measure(objects: int, latency: float) -> dict[str, Poll]:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    since, old, fresh = now - timedelta(hours=1), now - timedelta(days=30), now - timedelta(minutes=30)
    patients = patient_ids(max(1, objects // OBJECTS_A_PATIENT))
    delivered = set(patients[::100])
    listed = {
        f"d/project-bench/{patient_id}/bundle-{number:04}.json": fresh if patient_id in delivered else old
        for patient_id in patients
        for number in range(OBJECTS_A_PATIENT)
    }
    with (
        ListedBucket(listed, latency) as bucket,
        mock.patch.dict(os.environ, {"AIRFLOW_CONN_AWS_DEFAULT": json.dumps(bucket.connection())}),
    ):
        polls = {"paginator": _timed(bucket, partial(paginator, bucket, since))}
        cold, warm = asyncio.run(_feed(bucket, since))
        polls |= {"ours, cold": cold, "ours, warm": warm}
    if any(found != delivered for found, _, _ in polls.values()):
        raise RuntimeError("A poll has not found the deliveries.")
    return polls


def _timed(bucket: ListedBucket, poll: Callable[[], set[str]]) -> Poll:
    before, began = bucket.requests, time.perf_counter()
    found = poll()
    return found, bucket.requests - before, time.perf_counter() - began


def paginator(bucket: ListedBucket, since: datetime) -> set[str]:
    """Do what one would write without us, and return the patients with objects since then."""
    from airflow_provider_healthex.sandbox.s3 import s3_client

    newest: dict[str, datetime] = {}
    pages = s3_client(bucket.url, CREDENTIALS).get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix="d/")
    for page in pages:
        for row in page.get("Contents", ()):
            patient_id = row["Key"].split("/")[2]
            newest[patient_id] = max(row["LastModified"], newest.get(patient_id, since))
    return {patient_id for patient_id, modified in newest.items() if modified > since}


async def _feed(bucket: ListedBucket, since: datetime) -> tuple[Poll, Poll]:
    """Poll twice as the trigger does, with nothing announced in between."""
    from airflow_provider_healthex.delivery.feed import Announced, Feed
    from airflow_provider_healthex.delivery.plan import Waiting
    from airflow_provider_healthex.delivery.sources import S3Source
    from airflow_provider_healthex.storage.s3 import TRIGGERER, AsyncBucket, AwsAccess

    feed, source, announced = Feed(_PATH, quiet_period=300), S3Source(), Announced.since(since)
    polls: list[Poll] = []
    async with AsyncBucket(NAME, AwsAccess("aws_default"), TRIGGERER) as storage:
        for _ in range(2):
            before, began = bucket.requests, time.perf_counter()
            found = await storage.run(feed.poke(announced, source))
            seconds = time.perf_counter() - began
            if isinstance(found, Waiting):
                raise RuntimeError(found.reason)
            patients = {delivery.values["healthexPatientId"] for delivery in found[0]}
            polls.append((patients, bucket.requests - before, seconds))
    return polls[0], polls[1]
