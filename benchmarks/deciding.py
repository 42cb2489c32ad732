"""The cost of deciding whether a delivery has arrived, against the cost of listing the bucket by boto3."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient, Plan
from airflow_provider_healthex.delivery.s3_listing import S3Listing
from airflow_provider_healthex.sandbox.s3 import s3_client
from benchmarks.bucket import CREDENTIALS, NAME, ListedBucket
from benchmarks.report import Report
from benchmarks.servers import patient_ids

TARGET = 0.10

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
        expectation = expected(["patient-00001"], since, path, wildcard=wildcard)
        keys = [f"d/project-bench/patient-00001/{number:06}.json" for number in range(objects)]
        note(f"one patient's, {case}", [_measure(keys, modified, expectation) for _ in range(rounds)])
    patients = patient_ids(min(1000, objects))
    keys = [
        f"d/project-bench/{each}/{number:04}.json" for each in patients for number in range(objects // len(patients))
    ]
    for case, modified in (("fresh", now - timedelta(hours=1)), ("of earlier deliveries", now - timedelta(days=30))):
        measured = [_measure(keys, modified, expected(patients, since)) for _ in range(rounds)]
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


def expected(
    patients: Sequence[str], requested_at: datetime, path: str = _FOLDER, *, wildcard: bool = False
) -> Expectation:
    """Return that these patients' deliveries are awaited."""
    awaited = tuple(Patient(patient_id, requested_at) for patient_id in patients)
    return Expectation((path,), {"projectId": "project-bench"}, awaited, ArrivalRule(), wildcard)


def _measure(keys: list[str], modified: datetime, expectation: Expectation) -> tuple[float, float]:
    """Return the seconds that listing these objects takes, and deciding on the pages."""
    with ListedBucket(dict.fromkeys(keys, modified)) as bucket:
        client = s3_client(bucket.url, CREDENTIALS)
        began = time.perf_counter()
        pages = list(client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix="d/"))
        listed = time.perf_counter()
    decide(ArrivalWait(expectation, S3Listing).poke(), pages)
    return listed - began, time.perf_counter() - listed


def decide(plan: Plan[Any], pages: list[Page]) -> None:
    """Answer a poke's requests with pages that are here already."""
    next(plan)
    try:
        for page in pages:
            plan.send([page])
    except StopIteration:
        return
    raise AssertionError("The poke wants more pages than there are.")
