"""A whole Airflow on PostgreSQL, each part in processes of its own, with a sandbox behind it."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.airflow import AirflowHome
from benchmarks.memory import Peaks, watched
from testing.airflow import Database, airflow_home
from testing.postgres import postgres


@dataclass(frozen=True)
class Refresh:
    """
    The cost of a DAG run, from the moment it was triggered.

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


class Delivers(Protocol):
    """What the sensors wait for."""

    def deliver(self, patient_id: str, /) -> object:
        """Let a patient's data arrive."""


@dataclass(frozen=True)
class RunningAirflow:
    """``airflow standalone``, read from its database."""

    home: AirflowHome
    database: Database
    process: subprocess.Popen[str]

    def refresh(self, dag_id: str, source: Delivers, patients: Sequence[str], sensors: int, patience: float) -> Refresh:
        """Run a DAG; deliver for everybody as soon as all its sensors wait, and let it end."""
        with watched(self.process.pid) as peaks:
            self.home.run("dags", "trigger", dag_id, "--run-id", "bench")
            self._wait(dag_id, "count(*) filter (where t.state = 'deferred') >= %s", sensors, patience)
            waiting_at = time.time()
            for patient_id in patients:
                source.deliver(patient_id)
            delivered_at = time.time()
            self._wait(dag_id, "bool_and(r.state = 'success' and r.end_date is not null)", None, patience)
        ((queued_at, ended_at, instances),) = self.database.query(
            "select extract(epoch from r.queued_at), extract(epoch from r.end_date), count(*) from dag_run r "
            "join task_instance t using (dag_id, run_id) where dag_id = %s group by 1, 2", dag_id,
        )  # fmt: skip
        return Refresh(instances, waiting_at - float(queued_at), float(ended_at) - delivered_at, peaks)

    def _wait(self, dag_id: str, condition: str, value: object, patience: float) -> None:
        deadline = time.monotonic() + patience
        values = [] if value is None else [value]
        while True:
            ((done, state),) = self.database.query(
                f"select {condition}, min(r.state) from dag_run r join task_instance t using (dag_id, run_id) "
                "where dag_id = %s", *values, dag_id,
            )  # fmt: skip
            if done:
                return
            if state == "failed" or time.monotonic() > deadline or self.process.poll() is not None:
                states = self.database.query(
                    "select task_id, state, count(*) from task_instance where dag_id = %s group by 1, 2", dag_id
                )
                raise RuntimeError(f"{dag_id} did not get there: {states}")
            time.sleep(0.5)


@contextlib.contextmanager
def running(sandbox: Sandbox, dags: Sequence[str], variables: dict[str, str]) -> Iterator[RunningAirflow]:
    """
    Run an Airflow until the end of the block, and wait first until it knows the DAGs.

    :raises testing.Unavailable: where PostgreSQL or its driver isn't installed.
    """
    with (
        postgres() as cluster,
        airflow_home(
            cluster.address, Path(__file__).with_name("dags"), {**sandbox.airflow_environment(), **variables}
        ) as home,
        Path(home.path, "standalone.log").open("w") as log,
        home.start("standalone", stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        database = Database(cluster.address)
        database.wait_until_parsed(dags)
        yield RunningAirflow(home, database, process)
