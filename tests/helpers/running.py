"""Driving and reading a whole Airflow, whose parts run in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psutil
import requests

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.airflow import AirflowHome
from helpers.support import AIRFLOW as VERSION

HAS_STATE_STORE = VERSION >= (3, 3)
HAS_WATCHERS = VERSION >= (3, 0)
HAS_APPROVAL = VERSION >= (3, 1)


def wait_for(what: str, found: Callable[[], Any], *, seconds: float = 120, every: float = 0.5) -> Any:
    """Wait until there is something, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(every)
    return value


@dataclass
class RunningAirflow:
    """``airflow standalone``, driven by its command line and read from its database."""

    home: AirflowHome
    sandbox: Sandbox
    process: subprocess.Popen[str]
    tokens: list[str]
    #: The patients of delivered objects, a line for each object.
    delivered: list[str]
    later: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def trigger(self, dag_id: str, run_id: str, **conf: Any) -> None:
        arguments = {"bucket": self.sandbox.bucket, **conf}
        if VERSION >= (3, 0):
            run = {"dag_run_id": run_id, "logical_date": None, "conf": arguments}
            # A whole Airflow on SQLite answers 500 now and then, where the command line would wait.
            wait_for(
                f"{run_id} is triggered",
                lambda: self.api("POST", f"dags/{dag_id}/dagRuns", **run).status_code in (200, 409),
                seconds=60,
            )
            return
        self.home.run("dags", "trigger", dag_id, "--run-id", run_id, "--conf", json.dumps(arguments))

    def clear(self, dag_id: str) -> None:
        self.home.run("tasks", "clear", "--yes", dag_id)

    def api(self, method: str, path: str, **body: Any) -> requests.Response:
        """Call Airflow's REST API, which asks for no login here."""
        url = self.home.environment["AIRFLOW__API__BASE_URL"]
        token = requests.get(f"{url}/auth/token", timeout=30).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        return requests.request(method, f"{url}/api/v2/{path}", json=body or None, headers=headers, timeout=30)

    def answers(self) -> bool:
        """Whether the API server of Airflow 3 answers yet, and signs tokens."""
        try:
            return self.api("GET", "monitor/health").ok
        except (requests.ConnectionError, KeyError, ValueError):
            return False

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(
            sqlite3.connect(f"file:{self.home.path}/airflow.db?mode=ro", uri=True, timeout=30)
        ) as database:
            return database.execute(sql, values).fetchall()

    def scheduler_has_read(self, dag_id: str) -> bool:
        """Whether the scheduler has read that a worker has ended its part of a task of a DAG."""
        log = (self.home.path / "standalone.log").read_text(errors="replace")
        return re.search(rf"executor event with state success .*dag_id='{dag_id}'", log) is not None

    def states(self, run_id: str) -> dict[str, str]:
        return dict(self.query("select task_id, state from task_instance where run_id = ?", run_id))

    def result(self, run_id: str, task_id: str) -> Any:
        ((value,),) = self.query(
            "select value from xcom where run_id = ? and task_id = ? and key = 'return_value'", run_id, task_id
        )
        return _decoded(value)

    def processed(self) -> Counter[str]:
        """Return how many runs of the ``on_delivery`` example have worked on each patient."""
        rows = self.query("select value from xcom where dag_id = 'on_delivery' and key = 'return_value'")
        return Counter(patient_id for (value,) in rows for patient_id in _decoded(value))

    def announced(self) -> list[tuple[str, datetime]]:
        """Return the deliveries the example's watcher has announced: whose, and their newest object's time."""
        events = [_decoded(extra) for (extra,) in self.query("select extra from asset_event order by id")]
        return [
            (delivery["patient_id"], datetime.fromisoformat(delivery["last_modified"]))
            for event in events
            for delivery in event["payload"]["deliveries"]
        ]

    def newest_objects(self) -> set[tuple[str, datetime]]:
        """Return the newest object's time of each patient for whom the sandbox has delivered since its start."""
        newest: dict[str, datetime] = {}
        pages = self.sandbox.s3_client().get_paginator("list_objects_v2").paginate(Bucket=self.sandbox.bucket)
        for row in (row for page in pages for row in page["Contents"]):
            patient_id = row["Key"].split("/")[2]
            newest[patient_id] = max(row["LastModified"], newest.get(patient_id, row["LastModified"]))
        return {(patient_id, newest[patient_id].replace(microsecond=0)) for patient_id in set(self.delivered)}

    def logs(self, pattern: str) -> dict[str, str]:
        """Return tasks' logs, by file."""
        files = self.home.path.glob(f"logs/**/{pattern}")
        return {str(file): file.read_text(errors="replace") for file in files if file.is_file()}

    def wait(self, run_id: str, *, not_before: int = 1, seconds: float = 180) -> str:
        """Wait until a run has ended (for the ``not_before``-th time, of its task's tries) and return its state."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            rows = self.query("select state from dag_run where run_id = ?", run_id)
            tries = self.query("select max(try_number) from task_instance where run_id = ?", run_id)
            if rows and rows[0][0] in ("success", "failed") and (tries[0][0] or 0) >= not_before:
                return str(rows[0][0])
            time.sleep(0.5)
        raise AssertionError(f"{run_id} has not ended: {self.states(run_id)}")

    def kill_triggerer(self) -> None:
        """End the triggerer at once, its children too."""
        triggerers = [
            each for each in psutil.Process(self.process.pid).children() if "triggerer" in _command_line(each)
        ]
        assert triggerers
        for each in {child for parent in triggerers for child in (parent, *parent.children(recursive=True))}:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()

    def start_triggerer(self) -> None:
        """Start another triggerer, for the rest of the session."""
        log = self.later.enter_context((self.home.path / "triggerer.log").open("w"))
        process = self.later.enter_context(
            self.home.start("triggerer", "--skip-serve-logs", stdout=log, stderr=subprocess.STDOUT)
        )
        self.later.callback(os.killpg, process.pid, signal.SIGKILL)  # nothing of it is needed, and it takes its time


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # or a zombie
        return ""


def _decoded(value: Any) -> Any:
    while isinstance(value, str | bytes):
        value = json.loads(value)
    return value
