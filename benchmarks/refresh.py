"""The cost of a whole refresh of many patients on Airflow: a task and a sensor for each, or ours, one for all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.cohort import cohort_scenarios
from benchmarks.airflow import Refresh, running
from benchmarks.memory import TRIGGERER
from benchmarks.report import Report

TARGET = 1 / 20

#: Our overhead over Airflow's own and one poll interval, for the first of the sizes.
FLOOR_TARGET = 1.3

#: Patients.
SIZES = (200, 1000)

SEED = 7

#: Seconds, as in dags/refreshing.py.
POKE_INTERVAL = 5

_NOTES = (
    f"LocalExecutor and PostgreSQL, with Airflow's own settings; all variants poke every {POKE_INTERVAL} s.",
    "Floor: a `@task` that does nothing, then a deferrable FileSensor: Airflow's own cost of two tasks.",
    "Mapped: a `@task` with requests, then a deferrable S3KeySensor with a `check_fn` by the request's time.",
    "Ours: the cohort operator, then the deferrable cohort sensor.",
    "The mapped variant runs with the first size alone, as 1,000 patients take 20 minutes. Larger ones are reckoned.",
    "All updates are accepted. The data comes for all at once, as soon as every sensor waits in the triggerer.",
    "Overhead: from the trigger to success, without the wait for the data; up to a poll interval of it is a pause.",
    "No earlier deliveries are in the bucket. With them each deferred S3KeySensor goes back to a worker at every poll.",
    "Memory is by how much the triggerer grew. What needs less runs first, so that it is not counted as another's.",
)


class _Folder:
    """Delivers what the floor's sensor waits for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def deliver(self, name: str, /) -> None:
        (self.path / name).touch()


def run(sizes: Sequence[int] = SIZES) -> Report:
    """Run the floor, ours in each size and the mapped variant in the first, on one Airflow."""
    # Each has patients of its own, or the deliveries to one would be stale objects to the other.
    first = sizes[0]
    ids = iter(accepted(first + sum(sizes)))
    cohorts = {f"{size}": list(islice(ids, size)) for size in sizes}
    mapped = list(islice(ids, first))
    with (
        tempfile.TemporaryDirectory() as folder,
        Sandbox(cohort=2 * (first + sum(sizes)), seed=SEED, delay=24 * 3600, earlier_deliveries=False) as sandbox,
    ):
        files = _Folder(Path(folder))
        variables = {
            "BENCH_COHORTS": json.dumps(cohorts),
            "BENCH_MAPPED": json.dumps({f"{first}": mapped}),
            "BENCH_BUCKET": sandbox.bucket,
            "BENCH_FOLDER": folder,
            "AIRFLOW_CONN_FS_DEFAULT": json.dumps({"conn_type": "fs"}),
        }
        variants = [*(f"bench_cohort_{size}" for size in sizes), f"bench_mapped_{first}"]
        with running(sandbox, ["bench_warm_up", "bench_floor", *variants], variables) as airflow:
            airflow.refresh("bench_warm_up", files, ["warm_up"], 1, 300)
            floor = airflow.refresh("bench_floor", files, ["floor"], 1, 300)
            ours = [airflow.refresh(f"bench_cohort_{n}", sandbox, own, 1, 300) for n, own in cohorts.items()]
            measured = airflow.refresh(f"bench_mapped_{first}", sandbox, mapped, first, 300 + 5 * first)
    theirs = [measured, *(_reckoned(measured, size / first) for size in sizes[1:])]
    return _report(sizes, floor, ours, theirs)


def _report(sizes: Sequence[int], floor: Refresh, ours: Sequence[Refresh], theirs: Sequence[Refresh]) -> Report:
    shares = [our.overhead / their.overhead for our, their in zip(ours, theirs, strict=True)]
    times = [our.overhead / (floor.overhead + POKE_INTERVAL) for our in ours]
    ratios = [
        f"{size:,} patients: 1/{1 / share:.0f} of the mapped variant's overhead, {over:.1f} x Airflow's own"
        for size, share, over in zip(sizes, shares, times, strict=True)
    ]
    rows = [_row("floor", floor)]
    for size, their, our in zip(sizes, theirs, ours, strict=True):
        reckoned = "" if size == sizes[0] else ", reckoned"
        rows += [_row(f"{size:,} patients: mapped{reckoned}", their), _row(f"{size:,} patients: ours", our)]
    return Report(
        name="refresh",
        question="A whole refresh of many patients on an Airflow of its own; Airflow's own: floor + one poll interval.",
        ratio="; ".join(ratios),
        target=f"at most 1/{1 / TARGET:.0f} and {FLOOR_TARGET:g} x for {sizes[0]:,} patients",
        met=shares[0] <= TARGET and times[0] <= FLOOR_TARGET,
        columns=("how", "task instances", "until all wait s", "from data to success s", "overhead s", "triggerer MB"),
        rows=rows,
        notes=_NOTES,
    )


def _reckoned(measured: Refresh, times: float) -> Refresh:
    """Return what so many times as many mapped tasks cost."""
    return replace(
        measured,
        task_instances=round(measured.task_instances * times),
        until_waiting=measured.until_waiting * times,
        until_success=measured.until_success * times,
    )


def accepted(patients: int) -> list[str]:
    """Return so many patients of a cohort twice the size whose update is accepted and who get data."""
    found = [each.patient_id for each in cohort_scenarios(2 * patients, SEED) if each.files and not each.reason]
    return found[:patients]


def _row(how: str, refresh: Refresh) -> tuple[str, ...]:
    return (
        how,
        f"{refresh.task_instances:,}",
        f"{refresh.until_waiting:.1f}",
        f"{refresh.until_success:.1f}",
        f"{refresh.overhead:.1f}",
        f"{refresh.peaks.grown(TRIGGERER):.0f}",
    )
