"""What a poll for many patients costs S3 and the worker: a key sensor for each, and one listing for all."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest import mock

from benchmarks.bucket import NAME, PAGE, ListedBucket
from benchmarks.report import Report
from benchmarks.servers import patient_ids

MISSING = (1000, 100, 10, 1)

#: Key sensors that are poked; the time of more is reckoned.
SAMPLE = 100

_PATH = "d/{projectId}/{healthexPatientId}/"
_PREFIX = "d/project-bench/{}/"

_NOTES = (
    "S3KeySensor: wildcard, `check_fn` by LastModified. Each was poked once before, so that its client is there.",
    "In reschedule mode each of its pokes makes a new client besides, and takes a worker's start.",
    f"At most {SAMPLE} key sensors are poked; LISTs and seconds of more are reckoned from theirs.",
    "Requests are LISTs over loopback, of a server that answers from memory. With S3, each takes tens of ms more.",
    "The bound: min(ceil(N/1000), the sum over missing patients of max(1, ceil(n/1000))) + 1.",
)


def run(patients: int = 1000, objects: int = 100_000, missing: Sequence[int] = MISSING) -> Report:
    """Poll once for each number of patients still missing."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    since, old, fresh = now - timedelta(hours=1), now - timedelta(days=30), now - timedelta(minutes=30)
    each = objects // patients
    keys = {
        patient_id: [f"{_PREFIX.format(patient_id)}bundle-{number:04}.json" for number in range(each)]
        for patient_id in patient_ids(patients)
    }
    listed = {key: old for names in keys.values() for key in names}
    rows, ratios, held = [], [], True
    with (
        ListedBucket(listed) as bucket,
        mock.patch.dict(os.environ, {"AIRFLOW_CONN_AWS_DEFAULT": json.dumps(bucket.connection())}),
    ):
        poll = cohort_poll(list(keys), since)
        # Whoever is still missing is anywhere among the others.
        waited_for = random.Random(7).sample(list(keys), patients)
        for count in missing:
            arrived, waited_for = waited_for[: len(waited_for) - count], waited_for[len(waited_for) - count :]
            if arrived:
                bucket.modify((key for patient_id in arrived for key in keys[patient_id]), fresh)
                poll()  # which finds them; the next one looks for the others alone
            requests, seconds = measure(bucket, poll)
            theirs, their_seconds = key_sensors(bucket, waited_for, since)
            bound = min(math.ceil(objects / PAGE), count * max(1, math.ceil(each / PAGE))) + 1
            held = held and requests <= bound
            ratios.append(f"{theirs / requests:.1f} with {count:,}")
            rows += [
                (f"{count:,} missing: S3KeySensor", f"{theirs:,}", "", f"{their_seconds:.2f}"),
                (f"{count:,} missing: ours", f"{requests:,}", f"{bound:,}", f"{seconds:.2f}"),
            ]
    return Report(
        name="waiting",
        question=f"One poll for {patients:,} patients among {objects:,} objects.",
        ratio=f"S3KeySensor's LISTs over ours: {', '.join(ratios)} missing",
        target="no more LISTs than the bound",
        met=held,
        columns=("who", "LISTs", "bound", "s"),
        rows=rows,
        notes=_NOTES,
    )


def measure(bucket: ListedBucket, poll: Callable[[], object]) -> tuple[int, float]:
    """Return the requests and seconds of a poll."""
    before, began = bucket.requests, time.perf_counter()
    poll()
    return bucket.requests - before, time.perf_counter() - began


def key_sensors(bucket: ListedBucket, waited_for: Sequence[str], since: datetime) -> tuple[int, float]:
    """Poke a key sensor for each patient, as one would without us; return requests and seconds of all."""
    from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor

    def is_fresh(files: list[dict[str, Any]], **context: Any) -> bool:
        return any(file["LastModified"] >= since for file in files)

    sample = list(waited_for)[:SAMPLE]
    sensors = [
        S3KeySensor(
            task_id=patient_id,
            bucket_name=NAME,
            bucket_key=f"{_PREFIX.format(patient_id)}*",
            wildcard_match=True,
            check_fn=is_fresh,
            metadata_keys=["LastModified"],
        )
        for patient_id in sample
    ]
    for sensor in sensors:
        sensor.poke({})
    requests, seconds = measure(bucket, lambda: [sensor.poke({}) for sensor in sensors])
    share = len(waited_for) / len(sample)
    return round(requests * share), seconds * share


def cohort_poll(patients: Sequence[str], requested_at: datetime) -> Callable[[], object]:
    """Return what our cohort sensor does for a poll, in each of its modes; it remembers who arrived."""
    from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient
    from airflow_provider_healthex.storage.s3 import AwsAccess, Bucket

    expectation = Expectation(
        (_PATH,),
        {"projectId": "project-bench"},
        tuple(Patient(patient_id, requested_at) for patient_id in patients),
        ArrivalRule(),
    )
    bucket = Bucket(NAME, AwsAccess("aws_default"))
    wait = ArrivalWait(expectation, bucket.listing)
    return lambda: bucket.run(wait.poke())
