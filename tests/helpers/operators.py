"""Helpers of the operators' tests: a context without Airflow, and state stores."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator

PROJECT = "project-7"


class Store:
    """
    The task's state store, which Airflow 3.3 has; its place in a real Airflow is tested end to end.

    :param folder: where it outlives a process; else it is in memory.
    """

    def __init__(self, folder=None):
        self.values = {}
        self.folder = folder and Path(folder)
        self.sets = 0
        self.largest = 0

    def get(self, key, default=None):
        if self.folder and (self.folder / key).exists():
            return json.loads((self.folder / key).read_text())
        return json.loads(self.values[key]) if key in self.values else default

    def set(self, key, value, *, retention=None):
        assert value is not None
        text = json.dumps(value)
        self.sets += 1
        self.largest = max(self.largest, len(text))
        if self.folder:
            (self.folder / "new").write_text(text)
            os.replace(self.folder / "new", self.folder / key)
        else:
            self.values[key] = text


class RefusingStore(Store):
    """A state store that refuses a write while `refuses`, given the store, is true."""

    def __init__(self, refuses):
        super().__init__()
        self.refuses = refuses

    @classmethod
    def after(cls, writes):
        return cls(lambda store: store.sets >= writes)

    def set(self, key, value, **arguments):
        if self.refuses(self):
            raise RuntimeError("the API server answered 500")
        super().set(key, value, **arguments)


class TaskInstance:
    """The attributes of a task instance that the operators read."""

    def __init__(self, task, max_tries=0, try_number=1):
        self.task, self.max_tries, self.try_number = task, max_tries, try_number
        self.pushed = {}

    def xcom_push(self, key, value):
        self.pushed[key] = json.loads(json.dumps(value))


def cohort(patient_ids, **arguments):
    return HealthExUpdateCohortOperator(task_id="refresh", patient_ids=patient_ids, **arguments)


def run(task, store=None, max_tries=0, ti=None):
    """Run a task; with max_tries=n as after n clears of a task without retries."""
    ti = ti or TaskInstance(task, max_tries, max_tries + 1)
    context = {"ti": ti, "task": task, "dag_run": SimpleNamespace(clear_number=max_tries)}
    if store is not None:
        context["task_state_store"] = store
    return task.execute(context)


def connection(url, token, **extra):
    extra = {"project_id": PROJECT, "read_timeout": 5, **extra}
    return json.dumps({"conn_type": "healthex", "host": url, "password": token, "extra": extra})


if __name__ == "__main__":  # a worker's process, to be killed
    run(cohort(json.loads(sys.argv[2]), max_concurrency=int(sys.argv[3])), Store(sys.argv[1]))
