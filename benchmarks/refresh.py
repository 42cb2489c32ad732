"""The cost of a whole refresh of many patients on Airflow: a task and a sensor for each, or ours, one for all."""

from __future__ import annotations

import json

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.cohort import cohort_scenarios
from benchmarks.airflow import Refresh, running
from benchmarks.memory import TRIGGERER
from benchmarks.report import Report

TARGET = 1 / 20

SEED = 7

_NOTES = (
    "LocalExecutor and PostgreSQL, with Airflow's own settings; both variants look every 5 s.",
    "Mapped: a `@task` with requests, then a deferrable S3KeySensor with a `check_fn` by the request's time.",
    "Ours: the cohort operator, then the deferrable cohort sensor.",
    "All updates are accepted. The data comes for all at once, as soon as every sensor waits in the triggerer.",
    "Overhead: from the trigger to success, without the wait for the data. Up to 5 s of it are the poll's interval.",
    "No earlier deliveries are in the bucket. With them each deferred S3KeySensor goes back to a worker at every poll.",
    "Memory is by how much the triggerer grew. Ours runs first, so that what it loads once is not counted as theirs.",
)


def run(patients: int = 200) -> Report:
    """Run both on one Airflow."""
    ids = accepted(2 * patients)
    # Each has patients of its own, or the deliveries to one would be old objects to the other.
    ours_ids, mapped_ids = ids[:patients], ids[patients:]
    with Sandbox(cohort=4 * patients, seed=SEED, delay=24 * 3600, earlier_deliveries=False) as sandbox:
        variables = {
            "BENCH_PATIENT_IDS": json.dumps(ours_ids),
            "BENCH_MAPPED_IDS": json.dumps(mapped_ids),
            "BENCH_BUCKET": sandbox.bucket,
        }
        with running(sandbox, ("bench_mapped", "bench_cohort"), variables) as airflow:
            ours = airflow.refresh("bench_cohort", sandbox, ours_ids, 1, 300)
            mapped = airflow.refresh("bench_mapped", sandbox, mapped_ids, patients, 900)
    ratio = ours.overhead / mapped.overhead
    return Report(
        name="refresh",
        question=f"A whole refresh of {patients:,} patients on an Airflow of its own.",
        ratio=f"1/{1 / ratio:.0f} of the mapped variant's overhead",
        target=f"at most 1/{1 / TARGET:.0f}",
        met=ratio <= TARGET,
        columns=("how", "task instances", "until all wait s", "from data to success s", "overhead s", "triggerer MB"),
        rows=[_row("mapped", mapped), _row("ours", ours)],
        notes=_NOTES,
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
