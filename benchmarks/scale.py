"""The cost of ten thousand patients in one DAG run: operator, XCom, deferred sensor and result on a whole Airflow."""

from __future__ import annotations

import json
import tempfile

from airflow_provider_healthex.sandbox import Sandbox
from benchmarks.airflow import running
from benchmarks.memory import TRIGGERER, WORKER
from benchmarks.refresh import SEED, accepted
from benchmarks.report import Report

_NOTES = (
    "LocalExecutor and PostgreSQL. The sandbox answers at once; what it and Airflow take of the cores is in the times.",
    "Memory: of the worker its largest process, of the triggerer all of its processes; before, and at the most.",
)


def run(patients: int = 10_000) -> Report:
    """Run a cohort's DAG once."""
    ids = accepted(patients)
    with (
        tempfile.NamedTemporaryFile("w", suffix=".json") as file,
        Sandbox(cohort=2 * patients, seed=SEED, delay=24 * 3600, earlier_deliveries=False) as sandbox,
    ):
        json.dump(ids, file)
        file.flush()
        variables = {"BENCH_PATIENTS_FILE": file.name, "BENCH_BUCKET": sandbox.bucket}
        with running(sandbox, ("bench_scaling",), variables) as airflow:
            ours = airflow.refresh("bench_scaling", sandbox, ids, 1, 900)
    peaks = ours.peaks
    return Report(
        name="scale",
        question=f"{patients:,} patients through operator, XCom, deferred sensor and result, in one DAG run.",
        ratio=f"{ours.overhead:.0f} s of overhead",
        columns=("what", "value"),
        rows=[
            ("task instances", f"{ours.task_instances:,}"),
            ("trigger to all requested and waiting", f"{ours.until_waiting:.1f} s"),
            ("data to success", f"{ours.until_success:.1f} s"),
            ("triggerer, before and at most", f"{peaks.first.get(TRIGGERER, 0):.0f}, {peaks.most[TRIGGERER]:.0f} MB"),
            ("worker, before and at most", f"{peaks.first.get(WORKER, 0):.0f}, {peaks.most[WORKER]:.0f} MB"),
        ],
        notes=_NOTES,
    )
