"""A whole Airflow, its scheduler, executor and triggerer in processes of their own, and a sandbox."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.airflow import AirflowHome


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class RunningAirflow:
    """``airflow standalone``, driven by its command line and read from its database."""

    home: AirflowHome
    sandbox: Sandbox

    def trigger(self, dag_id: str, run_id: str, **conf: Any) -> None:
        arguments = {"bucket": self.sandbox.bucket, **conf}
        self.home.run("dags", "trigger", dag_id, "--run-id", run_id, "--conf", json.dumps(arguments))

    def clear(self, dag_id: str) -> None:
        self.home.run("tasks", "clear", "--yes", dag_id)

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with sqlite3.connect(f"file:{self.home.path}/airflow.db?mode=ro", uri=True, timeout=30) as database:
            return database.execute(sql, values).fetchall()

    def states(self, run_id: str) -> dict[str, str]:
        return dict(self.query("select task_id, state from task_instance where run_id = ?", run_id))

    def result(self, run_id: str, task_id: str) -> Any:
        ((value,),) = self.query(
            "select value from xcom where run_id = ? and task_id = ? and key = 'return_value'", run_id, task_id
        )
        while isinstance(value, str | bytes):
            value = json.loads(value)
        return value

    def wait(self, run_id: str, *, not_before: int = 1, seconds: float = 90) -> str:
        """Wait until a run has ended (for the ``not_before``-th time, of its task's tries) and return its state."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            rows = self.query("select state from dag_run where run_id = ?", run_id)
            tries = self.query("select max(try_number) from task_instance where run_id = ?", run_id)
            if rows and rows[0][0] in ("success", "failed") and (tries[0][0] or 0) >= not_before:
                return str(rows[0][0])
            time.sleep(0.5)
        raise AssertionError(f"{run_id} has not ended: {self.states(run_id)}")


@pytest.fixture(scope="session")
def real_airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAirflow]:
    path = tmp_path_factory.mktemp("standalone")
    # Longer than a slow machine takes from one task to the next, so that there is something to wait for.
    with Sandbox(delay=12) as sandbox:
        port = free_port()
        home = AirflowHome(
            path,
            Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]),
            {
                "HEALTHEX_EXAMPLE_POKE_INTERVAL": "5",
                "HEALTHEX_EXAMPLE_QUIET_PERIOD": "1",
                "AIRFLOW__API__PORT": str(port),
                "AIRFLOW__API__HOST": "127.0.0.1",
                "AIRFLOW__API__BASE_URL": f"http://localhost:{port}",
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://localhost:{port}/execution/",
                "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "false",
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "true",
                "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
                "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
                "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "false",
                "AIRFLOW__WEBSERVER__WEB_SERVER_PORT": str(port),
                "AIRFLOW__WEBSERVER__WEB_SERVER_HOST": "127.0.0.1",
            },
        )
        home.migrate()
        stored = {**sandbox.healthex_connection(), "login": "", "password": sandbox.token()}
        home.add_connections(
            {
                "healthex_default": sandbox.healthex_connection(),
                "healthex_stored": stored,
                "aws_default": sandbox.aws_connection(),
            }
        )
        with (
            (path / "standalone.log").open("w") as log,
            home.start("standalone", stdout=log, stderr=subprocess.STDOUT),
        ):
            running = RunningAirflow(home, sandbox)
            wait_until_parsed(running)
            running.tokens = [stored["password"]]  # type: ignore[attr-defined]
            yield running


def wait_until_parsed(running: RunningAirflow) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        known = {dag_id for (dag_id,) in running.query("select dag_id from serialized_dag")}
        if {"refresh_patient", "killed"} <= known:
            return
        time.sleep(0.5)
    raise AssertionError("Airflow has not parsed the DAGs")
