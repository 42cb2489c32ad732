"""An Airflow of its own on PostgreSQL: its settings, its home and its database. Which parts run is up to the caller."""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_healthex.sandbox.airflow import AirflowHome
from testing.postgres import free_port


@dataclass(frozen=True)
class Database:
    """
    Airflow's metadata database, read over a connection for each query: it may have been restarted since the last.

    :param address: its URL.
    """

    address: str

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        driver = importlib.import_module("psycopg2")
        with contextlib.closing(driver.connect(self.address)) as connection, connection.cursor() as cursor:
            cursor.execute(sql, values)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def wait_until_parsed(self, dags: Iterable[str], seconds: float = 120) -> None:
        """Wait until Airflow has parsed these DAGs."""
        dags, deadline = set(dags), time.monotonic() + seconds
        while time.monotonic() < deadline:
            missing = dags - {dag_id for (dag_id,) in self.query("select dag_id from serialized_dag")}
            if not missing:
                return
            time.sleep(0.5)
        raise RuntimeError(f"Airflow has not parsed the DAGs {json.dumps(sorted(missing))}.")


@contextlib.contextmanager
def airflow_home(address: str, dags_folder: Path, variables: Mapping[str, str]) -> Iterator[AirflowHome]:
    """
    Make a temporary home of an Airflow on a database, migrated.

    :param address: the database's URL.
    :param variables: more environment variables; they win over :func:`settings`.
    """
    with tempfile.TemporaryDirectory(prefix="healthex-airflow-") as folder:
        home = AirflowHome(Path(folder), dags_folder, {**settings(address), **variables})
        home.migrate()
        yield home


def settings(address: str) -> dict[str, str]:
    """Return the environment of an Airflow on this database, on free ports of loopback."""
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
