"""A whole Airflow on PostgreSQL, each part in processes of its own, with a sandbox behind it."""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.airflow import AirflowHome
from benchmarks.memory import Peaks, watched
from benchmarks.postgres import cluster, free_port
from benchmarks.report import Unavailable


@dataclass(frozen=True)
class Refresh:
    """
    What a run of a DAG cost, from the moment it was triggered.

    :param task_instances: that it had.
    :param until_waiting: seconds until every sensor had gone to the triggerer.
    :param until_success: seconds from the data's arrival to the run's success.
    :param peaks: memory.
    """

    task_instances: int
    until_waiting: float
    until_success: float
    peaks: Peaks

    @property
    def overhead(self) -> float:
        """Seconds that the run took besides waiting for the data."""
        return self.until_waiting + self.until_success


@dataclass(frozen=True)
class RunningAirflow:
    """``airflow standalone``, read from its database."""

    home: AirflowHome
    database: Any
    process: subprocess.Popen[str]

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self.database.cursor() as cursor:
            cursor.execute(sql, values)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def refresh(self, dag_id: str, sandbox: Sandbox, patients: Sequence[str], sensors: int, patience: float) -> Refresh:
        """Run a DAG; deliver for everybody as soon as all its sensors wait, and let it end."""
        with watched(self.process.pid) as peaks:
            self.home.run("dags", "trigger", dag_id, "--run-id", "bench")
            self._wait(dag_id, "count(*) filter (where t.state = 'deferred') >= %s", sensors, patience)
            waiting_at = time.time()
            for patient_id in patients:
                sandbox.deliver(patient_id)
            delivered_at = time.time()
            self._wait(dag_id, "bool_and(r.state = 'success' and r.end_date is not null)", None, patience)
        ((queued_at, ended_at, instances),) = self.query(
            "select extract(epoch from r.queued_at), extract(epoch from r.end_date), count(*) from dag_run r "
            "join task_instance t using (dag_id, run_id) where dag_id = %s group by 1, 2", dag_id,
        )  # fmt: skip
        return Refresh(instances, waiting_at - float(queued_at), float(ended_at) - delivered_at, peaks)

    def _wait(self, dag_id: str, condition: str, value: object, patience: float) -> None:
        deadline = time.monotonic() + patience
        values = [] if value is None else [value]
        while True:
            ((done, state),) = self.query(
                f"select {condition}, min(r.state) from dag_run r join task_instance t using (dag_id, run_id) "
                "where dag_id = %s", *values, dag_id,
            )  # fmt: skip
            if done:
                return
            if state == "failed" or time.monotonic() > deadline or self.process.poll() is not None:
                states = self.query(
                    "select task_id, state, count(*) from task_instance where dag_id = %s group by 1, 2", dag_id
                )
                raise RuntimeError(f"{dag_id} did not get there: {states}")
            time.sleep(0.5)


@contextlib.contextmanager
def running(sandbox: Sandbox, dags: Sequence[str], variables: dict[str, str]) -> Iterator[RunningAirflow]:
    """
    Run an Airflow until the end of the block, and wait first until it knows the DAGs.

    :raises Unavailable: where PostgreSQL or its driver isn't installed.
    """
    try:
        psycopg2 = importlib.import_module("psycopg2")
    except ModuleNotFoundError as error:
        raise Unavailable("it needs PostgreSQL's driver: pip install psycopg2-binary asyncpg") from error

    with cluster() as address, tempfile.TemporaryDirectory(prefix="bench-airflow-") as folder:
        settings = {**sandbox.airflow_environment(), **_settings(address), **variables}
        home = AirflowHome(Path(folder), Path(__file__).with_name("dags"), settings)
        home.migrate()
        with (
            Path(folder, "standalone.log").open("w") as log,
            home.start("standalone", stdout=log, stderr=subprocess.STDOUT) as process,
            contextlib.closing(psycopg2.connect(address)) as database,
        ):
            database.autocommit = True
            airflow = RunningAirflow(home, database, process)
            _wait_until_parsed(airflow, dags)
            yield airflow


def _settings(address: str) -> dict[str, str]:
    port = free_port()
    return {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address.replace("postgresql:", "postgresql+psycopg2:"),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "false",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "true",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://localhost:{port}/execution/",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__BASE_URL": f"http://localhost:{port}",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "false",
        # Airflow 2.11
        "AIRFLOW__WEBSERVER__WEB_SERVER_PORT": str(port),
        "AIRFLOW__WEBSERVER__WEB_SERVER_HOST": "127.0.0.1",
    }


def _wait_until_parsed(airflow: RunningAirflow, dags: Sequence[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if set(dags) <= {dag_id for (dag_id,) in airflow.query("select dag_id from serialized_dag")}:
            return
        time.sleep(0.5)
    raise RuntimeError(f"Airflow has not parsed the DAGs {json.dumps(list(dags))}.")
