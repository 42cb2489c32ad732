"""What it costs to decide whether a delivery has arrived, against what it costs boto3 to list the bucket."""

from __future__ import annotations

import statistics
import time
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow_provider_healthex.delivery import Arrived, Expectation, Waiting, expand
from airflow_provider_healthex.delivery.listing import look
from airflow_provider_healthex.sandbox.s3 import s3_client
from benchmarks.bucket import CREDENTIALS, NAME, ListedBucket
from benchmarks.report import Report

TARGET = 0.10

_VALUES = {"projectId": "project-bench", "healthexPatientId": "patient-00001"}
_FOLDER = "d/{projectId}/{healthexPatientId}/"

_NOTE = (
    "Listed over loopback from a server that answers from memory, so the listing is nearly all boto3's own work; "
    "with S3 itself it takes longer, and the share is smaller."
)

Page = dict[str, Any]


def run(objects: int = 100_000, rounds: int = 3) -> Report:
    """Decide over one patient's folder of so many objects, listed by boto3 over loopback."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    since = now - timedelta(hours=2)
    cases = {
        "all of them fresh": (now - timedelta(hours=1), _FOLDER, False),
        "all of them of an earlier delivery": (now - timedelta(days=30), _FOLDER, False),
        "all of them fresh, by a glob over the key": (now - timedelta(hours=1), _FOLDER + "*.json", True),
    }
    rows, shares = [], []
    for case, (modified, path, wildcard) in cases.items():
        expectation = Expectation((expand(path, _VALUES, wildcard=wildcard),), since)
        listing, deciding = zip(*(_measure(objects, modified, expectation) for _ in range(rounds)), strict=True)
        shares.append(statistics.median(deciding) / statistics.median(listing))
        rows.append(
            (
                case,
                f"{statistics.median(listing):.2f}",
                f"{statistics.median(deciding):.3f}",
                f"{shares[-1]:.1%}",
            )
        )
    return Report(
        name="deciding",
        question=f"Deciding arrival over {objects:,} rows of one patient's folder, and listing them with boto3.",
        ratio=f"{max(shares):.1%} of the time boto3 takes to list, at most",
        target=f"at most {TARGET:.0%}",
        met=max(shares) <= TARGET,
        columns=("rows", "listing s", "deciding s", "share"),
        rows=rows,
        notes=(_NOTE,),
    )


def _measure(objects: int, modified: datetime, expectation: Expectation) -> tuple[float, float]:
    folder = expectation.targets[0].prefix
    with ListedBucket({f"{folder}{number:06}.json": modified for number in range(objects)}) as bucket:
        client = s3_client(bucket.url, CREDENTIALS)
        began = time.perf_counter()
        pages = list(client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix=folder))
        listed = time.perf_counter()
    verdict = decide(expectation, pages)
    decided = time.perf_counter()
    assert isinstance(verdict, Arrived | Waiting)
    return listed - began, decided - listed


def decide(expectation: Expectation, pages: list[Page]) -> Arrived | Waiting:
    """Run a look over pages that are here already."""
    steps = look(expectation)
    next(steps)
    try:
        for page in pages:
            steps.send(page)
    except StopIteration as end:
        verdict: Arrived | Waiting = end.value
        return verdict
    raise AssertionError("The look wants more pages than there are.")
