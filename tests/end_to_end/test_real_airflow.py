"""Behaviour that only an Airflow with its own processes shows: deferral, a killed task, and a clear."""

from __future__ import annotations

import pytest
from helpers.running import HAS_STATE_STORE, VERSION

from airflow_provider_healthex.sandbox import patients

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def refreshed(real_airflow, begun):
    """A run with each kind of token."""
    return {run_id: real_airflow.wait(run_id) for run_id in ("minted", "stored")}


def test_the_example_runs_with_each_kind_of_token(real_airflow, refreshed):
    assert refreshed == {"minted": "success", "stored": "success"}
    assert real_airflow.result("minted", "arrival")["object_count"] == 1


def test_the_wait_was_the_triggerers(real_airflow, refreshed):
    log = "".join(
        file.read_text(errors="replace")
        for file in real_airflow.home.path.glob("logs/**/*arrival*/**/*.log*")
        if "refresh_patient" in str(file)
    )
    assert "Waiting: " in log
    assert "Arrived for patient" in log


@pytest.mark.skipif(VERSION == (3, 0), reason="Airflow 3.0 fails a task whose process was killed, and retries it never")
def test_a_task_killed_after_the_answer_asks_once_over_its_retries_and_a_clear_asks_again(real_airflow, begun):
    sandbox = real_airflow.sandbox
    assert real_airflow.wait("killed", seconds=120) == "success"
    first = real_airflow.result("killed", "refresh")
    assert sandbox.asked(patients.PARTIAL) == (1 if HAS_STATE_STORE else 2)
    assert real_airflow.query("select max(try_number) from task_instance where run_id = 'killed'") == [(2,)]

    before = sandbox.asked(patients.PARTIAL)
    real_airflow.clear("killed")
    assert real_airflow.wait("killed", not_before=3) == "success"
    assert sandbox.asked(patients.PARTIAL) == before + 1
    assert real_airflow.result("killed", "refresh")["requested_at"] > first["requested_at"]
