"""What it costs to decide whether a delivery has arrived, against what it costs boto3 to list the bucket."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from airflow_provider_healthex.delivery.cohort import CohortExpectation, CohortWait, Member
from airflow_provider_healthex.delivery.listing import Look, look

from airflow_provider_healthex.delivery import Expectation, expand
from airflow_provider_healthex.sandbox.s3 import s3_client
from benchmarks.bucket import CREDENTIALS, NAME, ListedBucket
from benchmarks.report import Report
from benchmarks.servers import patient_ids

TARGET = 0.10

_VALUES = {"projectId": "project-bench", "healthexPatientId": "patient-00001"}
_FOLDER = "d/{projectId}/{healthexPatientId}/"

_NOTE = (
    "Listed over loopback from a server that answers from memory, so the listing is nearly all boto3's own work; "
    "with S3 itself it takes longer, and the share is smaller."
)

Page = dict[str, Any]


def run(objects: int = 100_000, rounds: int = 1) -> Report:
    """Decide over one patient's folder of so many objects, listed by boto3 over loopback."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    since = now - timedelta(hours=2)
    cases = {
        "all of them fresh": (now - timedelta(hours=1), _FOLDER, False),
        "all of them of an earlier delivery": (now - timedelta(days=30), _FOLDER, False),
        "all of them fresh, by a glob over the key": (now - timedelta(hours=1), _FOLDER + "*.json", True),
    }
    rows, shares = [], []

    def note(case: str, measured: Sequence[tuple[float, float]]) -> None:
        listing, deciding = (statistics.median(column) for column in zip(*measured, strict=True))
        shares.append(deciding / listing)
        rows.append((case, f"{listing:.2f}", f"{deciding:.3f}", f"{shares[-1]:.1%}"))

    for case, (modified, path, wildcard) in cases.items():
        expectation = Expectation((expand(path, _VALUES, wildcard=wildcard),), since)
        folder = expectation.targets[0].prefix
        keys = [f"{folder}{number:06}.json" for number in range(objects)]
        note(f"one patient's, {case}", [_measure(keys, modified, partial(look, expectation)) for _ in range(rounds)])
    patients = patient_ids(min(1000, objects))
    keys = [
        f"d/project-bench/{each}/{number:04}.json" for each in patients for number in range(objects // len(patients))
    ]
    members = tuple(Member(patient_id, 0) for patient_id in patients)
    for case, modified in (("fresh", now - timedelta(hours=1)), ("of earlier deliveries", now - timedelta(days=30))):
        cohort = CohortExpectation(_FOLDER, {"projectId": "project-bench"}, since, members)
        measured = [_measure(keys, modified, CohortWait(cohort).look) for _ in range(rounds)]
        note(f"{len(patients):,} patients', all of them {case}", measured)
    return Report(
        name="deciding",
        question=f"Deciding arrival over {objects:,} rows of a listing, and making that listing with boto3.",
        ratio=f"{max(shares):.1%} of the time boto3 takes to list, at most",
        target=f"at most {TARGET:.0%}",
        met=max(shares) <= TARGET,
        columns=("rows", "listing s", "deciding s", "share"),
        rows=rows,
        notes=(_NOTE,),
    )


def _measure(keys: list[str], modified: datetime, start: Callable[[], Look[Any]]) -> tuple[float, float]:
    """Return the seconds that listing these objects takes, and deciding on the pages."""
    with ListedBucket(dict.fromkeys(keys, modified)) as bucket:
        client = s3_client(bucket.url, CREDENTIALS)
        began = time.perf_counter()
        pages = list(client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix="d/"))
        listed = time.perf_counter()
    decide(start(), pages)
    return listed - began, time.perf_counter() - listed


def decide(steps: Look[Any], pages: list[Page]) -> Any:
    """Run a look over pages that are here already, and return its verdict."""
    next(steps)
    try:
        for page in pages:
            steps.send(page)
    except StopIteration as end:
        return end.value
    raise AssertionError("The look wants more pages than there are.")
