"""How long it takes to ask for many patients: one after the other with requests, and several at once with ours."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import requests

from airflow_provider_healthex.sandbox.airflow import AirflowHome
from airflow_provider_healthex.sandbox.patients import PROJECT_ID
from benchmarks.report import Report
from benchmarks.servers import RunningSandbox, patient_ids, sandbox

CONCURRENCIES = (1, 4, 8, 16)
ON_AIRFLOW = (8, 16)

TARGET = 0.9

_NOTES = (
    "One at a time, a quarter of the patients are requested, so that it ends within minutes: compare the rates.",
    "The rows of the hook count from the call to the last answer, the token's among them, as the row of requests does.",
    "Rows of the operator: the task's duration in `dag.test` on SQLite; durable, with the state store of Airflow 3.3.",
    "Of the sandbox's patients, 1 % answer 404 and 3 % need patient action, in every row.",
)


def run(patients: int = 1000, latency: float = 0.1) -> Report:
    """Ask a service that takes so long for each answer, for so many patients."""
    few = max(1, patients // 4)
    # Each is requested several times; nothing is to be delivered meanwhile.
    options = ("--patients", str(patients), "--seed", "7", "--latency", str(latency), "--delay", "3600")
    with sandbox(*options, "--no-earlier-deliveries") as served:
        rates = {"requests.Session, in a loop": (few, _sequential(served, few))}
        for concurrency in CONCURRENCIES:
            count = few if concurrency == 1 else patients
            rates[f"hook, max_concurrency={concurrency}"] = (count, _hook(served, count, concurrency))
        for task, seconds in _operator(served, patients).items():
            rates[f"operator, {task}"] = (patients, seconds)
    return _report(rates, patients, latency)


def _report(rates: dict[str, tuple[int, float]], patients: int, latency: float) -> Report:
    first, *_ = rates.values()
    baseline = first[0] / first[1]
    times = {what: count / seconds / baseline for what, (count, seconds) in rates.items()}
    hooks = {each: times[f"hook, max_concurrency={each}"] for each in CONCURRENCIES}
    return Report(
        name="updating",
        question=f"Requesting {patients:,} updates at {latency * 1000:g} ms an answer.",
        ratio=", ".join(f"{ratio:.1f} x at {each}" for each, ratio in hooks.items()) + " at once",
        target=f"{TARGET:g} x the concurrency, without durable",
        met=all(ratio >= TARGET * each for each, ratio in hooks.items()),
        columns=("how", "patients", "s", "patients/s", "times as fast"),
        rows=[
            (what, f"{count:,}", f"{seconds:.1f}", f"{count / seconds:.1f}", f"{times[what]:.1f}")
            for what, (count, seconds) in rates.items()
        ],
        notes=_NOTES,
    )


def _sequential(served: RunningSandbox, patients: int) -> float:
    """Do what one would write without us."""
    connection = served.healthex
    began = time.perf_counter()
    with requests.Session() as session:
        session.trust_env = False
        minted = session.post(
            f"{connection['host']}/v1/auth/token",
            json={"apiKey": connection["login"], "apiSecret": connection["password"]},
            timeout=30,
        )
        session.headers["Authorization"] = f"Bearer {minted.json()['token']}"
        for patient_id in patient_ids(patients):
            path = f"/v1/projects/{PROJECT_ID}/recruitment/identified-patients/{patient_id}/$updateData"
            session.post(connection["host"] + path, json={}, timeout=120)
    return time.perf_counter() - began


def _hook(served: RunningSandbox, patients: int, concurrency: int) -> float:
    from airflow_provider_healthex.hooks.healthex import HealthExHook

    with _connected(served):
        began = time.perf_counter()
        updates = HealthExHook().update_patients_data(patient_ids(patients), max_concurrency=concurrency)
        deque(updates, maxlen=0)
        return time.perf_counter() - began


def _operator(served: RunningSandbox, patients: int) -> dict[str, float]:
    """Run the operator on an Airflow, and return each task's duration."""
    variables = {
        **served.environment,
        "BENCH_PATIENT_IDS": json.dumps(patient_ids(patients)),
        "BENCH_CONCURRENCIES": json.dumps(ON_AIRFLOW),
    }
    with tempfile.TemporaryDirectory() as folder:
        home = AirflowHome(Path(folder), Path(__file__).with_name("dags"), variables)
        home.migrate()
        home.run("dags", "test", "bench_updating")
        with sqlite3.connect(f"file:{folder}/airflow.db?mode=ro", uri=True) as database:
            rows: list[tuple[str, str, float]] = database.execute(
                "select task_id, state, duration from task_instance order by start_date"
            ).fetchall()
    failed = [task for task, state, _ in rows if state != "success"]
    if failed:
        raise RuntimeError(f"The tasks {', '.join(failed)} did not succeed.")
    return {task.replace("_", ", max_concurrency="): seconds for task, _, seconds in rows if task != "warm_up"}


@contextmanager
def _connected(served: RunningSandbox) -> Iterator[Any]:
    with mock.patch.dict(os.environ, served.environment):
        yield
