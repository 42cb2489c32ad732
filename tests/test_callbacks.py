"""Callbacks and listeners see the typed error: it is the cause of what Airflow fails the task with."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from helpers.support import AIRFLOW, load_dags, run_dag

from airflow_provider_healthex.exceptions import (
    HealthExConfigurationError,
    HealthExNotFoundError,
    HealthExPatientActionNeeded,
)

try:
    from airflow.sdk.listener import get_listener_manager
except ImportError:
    from airflow.listeners.listener import get_listener_manager
from airflow.listeners import hookimpl

CAUSES = {
    "not_found": HealthExNotFoundError,
    "needs_action": HealthExPatientActionNeeded,
    "no_bucket": HealthExConfigurationError,
}


class Listener:
    def __init__(self):
        self.seen = {}

    @hookimpl
    def on_task_instance_failed(self, previous_state, task_instance, error):
        self.seen[task_instance.task_id] = error


@pytest.fixture
def listener():
    listener, manager = Listener(), get_listener_manager()
    manager.add_listener(listener)
    yield listener
    manager.pm.unregister(listener)


@pytest.mark.skipif((3, 0) <= AIRFLOW < (3, 3), reason="its dag.test() calls no callback of a failed task")
@pytest.mark.usefixtures("airflow_database")
def test_callbacks_and_listeners_see_the_typed_error_as_cause(healthex_sandbox, listener):
    dags = load_dags("dags/observed.py")
    run_dag(dags.observed, healthex_sandbox)
    for seen in (dags.SEEN, listener.seen):
        assert {task_id: type(error) for task_id, error in seen.items()} == dict.fromkeys(CAUSES, AirflowFailException)
        assert {task_id: type(error.__cause__) for task_id, error in seen.items()} == CAUSES
    assert listener.seen["not_found"].__cause__.status_code == 404
    assert listener.seen["needs_action"].__cause__.reason == "CONSENT_EXPIRED"
