"""Helpers of several tests: run a sensor in each of its modes, run a DAG on Airflow, put objects into S3."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import TaskDeferred

try:
    from airflow.sdk.exceptions import AirflowRescheduleException
except ImportError:
    from airflow.exceptions import AirflowRescheduleException

MODES = ("poke", "reschedule", "deferred")

AIRFLOW = tuple(int(part) for part in airflow_version.split(".")[:2])

#: Airflow's own sensors fail there, too.
reschedules = pytest.mark.skipif(
    AIRFLOW == (3, 0), reason="dag.test() of Airflow 3.0 fails a rescheduled sensor: it hands the date over as text"
)


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass
class Bucket:
    """A bucket on a real S3 server, and the Airflow connection to it."""

    name: str
    endpoint_url: str
    client: Any

    def put(self, key: str, body: bytes = b"{}") -> datetime:
        """Put an object and return its LastModified."""
        self.client.put_object(Bucket=self.name, Key=key, Body=body)
        (row,) = self.client.list_objects_v2(Bucket=self.name, Prefix=key, MaxKeys=1)["Contents"]
        return row["LastModified"]

    def keys(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [row["Key"] for page in pages for row in page.get("Contents", [])]

    def clear(self) -> None:
        for key in self.keys():
            self.client.delete_object(Bucket=self.name, Key=key)


def s3_client(endpoint_url: str, secret: str = "secret-of-the-test") -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="test-key",
        aws_secret_access_key=secret,
    )


def aws_connection(endpoint_url: str, secret: str = "secret-of-the-test") -> str:
    return json.dumps(
        {
            "conn_type": "aws",
            "login": "test-key",
            "password": secret,
            "extra": {"endpoint_url": endpoint_url, "region_name": "us-east-1"},
        }
    )


class FakeTaskInstance:
    """The part of a task instance that a sensor uses, so that a test needs no database."""

    dag_id, task_id, run_id, map_index = "dag", "task", "run", -1
    max_tries = 0
    try_number = 1

    def __init__(self, task: Any) -> None:
        self.task = task
        self.first_reschedule: datetime | None = None

    def get_first_reschedule_date(self, context: Any) -> datetime | None:
        return self.first_reschedule


def context_of(task: Any) -> dict[str, Any]:
    return {"ti": FakeTaskInstance(task), "task": task, "outlet_events": {}}


@dataclass
class Run:
    """A sensor's result, and how often a worker was taken."""

    result: Any
    deferrals: int = 0
    reschedules: int = 0


def run_sensor(sensor: Any, *, context: Any = None, before_trigger: Callable[[], None] | None = None) -> Run:
    """Run a sensor to its end as Airflow would: waiting between reschedules, with its trigger out of its JSON form."""
    context = context or context_of(sensor)
    with first_reschedule_without_database(context["ti"]):
        return _run_sensor(sensor, context, before_trigger)


@contextlib.contextmanager
def first_reschedule_without_database(ti: FakeTaskInstance) -> Iterator[None]:
    """Let Airflow 2.11, which reads it from the database, read a fake's first reschedule, as 3.x does."""
    try:
        from airflow.sensors.base import _orig_start_date  # noqa: F401
    except ImportError:
        yield
        return
    with mock.patch("airflow.sensors.base._orig_start_date", lambda *args, **kwargs: ti.first_reschedule):
        yield


def _run_sensor(sensor: Any, context: Any, before_trigger: Callable[[], None] | None) -> Run:
    run = Run(None)
    step = lambda task: task.execute(context)  # noqa: E731
    while True:
        task = copy.copy(sensor)  # a worker parses the DAG anew
        task._awaited = None
        started = utc_now()
        try:
            run.result = step(task)
            return run
        except AirflowRescheduleException as again:
            ti = context["ti"]
            ti.first_reschedule = ti.first_reschedule or started
            run.reschedules += 1
            time.sleep(max(0, (again.reschedule_date - utc_now()).total_seconds()))
        except TaskDeferred as deferred:
            run.deferrals += 1
            if before_trigger:
                before_trigger()
            event = run_trigger(deferred.trigger)
            step = lambda task, deferred=deferred, event=event: task.resume_execution(  # noqa: E731
                deferred.method_name, {**(deferred.kwargs or {}), "event": event}, context
            )


def run_trigger(trigger: Any) -> Any:
    """Run a trigger as a triggerer would: from what was stored of it, until its first event."""
    path, kwargs = trigger.serialize()
    kwargs = json.loads(json.dumps(kwargs))
    module, _, name = path.rpartition(".")
    again = getattr(sys.modules[module], name)(**kwargs)

    async def first_event() -> Any:
        async with contextlib.aclosing(again.run()) as events:
            async for event in events:
                return json.loads(json.dumps(event.payload))
        return None

    return asyncio.run(first_event())


def migrate() -> None:
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def load_dags(path: str) -> Any:
    """Import a file of the DAGs folder anew, as Airflow does."""
    name = f"dags_of_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]) / path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_dag(dag: Any, sandbox: Any, **conf: Any) -> Any:
    """Run a DAG on Airflow, with the sandbox's bucket, if it has one, among its parameters."""
    where = {"bucket": sandbox.bucket} if sandbox.delivery == "s3" else {}
    return dag.test(run_conf={**where, **conf})


def task_states(run: Any, task_id: str) -> list[str]:
    """Return how each of a task's mapped instances ended, in their order."""
    found = [ti for ti in run.get_task_instances() if ti.task_id == task_id]
    return [str(ti.state) for ti in sorted(found, key=lambda ti: ti.map_index)]


def xcom(run: Any, task_id: str, map_index: int = -1, key: str = "return_value") -> Any:
    """Read what a task returned, from the database."""
    from airflow.utils.session import create_session

    try:
        from airflow.models.xcom import XComModel as Model
    except ImportError:  # Airflow 2.11: its rows deserialize themselves
        from airflow.models.xcom import BaseXCom as Model

    with create_session() as session:
        rows = session.query(Model).filter_by(
            dag_id=run.dag_id, run_id=run.run_id, task_id=task_id, map_index=map_index, key=key
        )
        row = rows.one()
        return Model.deserialize_value(row) if isinstance(row.value, str | bytes) else row.value
