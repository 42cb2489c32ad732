"""Operator and sensor together, in DAGs that Airflow runs."""

from __future__ import annotations

import pytest
from helpers.support import load_dags, reschedules, run_dag, xcom

from airflow_provider_healthex.sandbox import patients

pytestmark = pytest.mark.usefixtures("airflow_database")


@pytest.fixture(scope="module")
def dags():
    return load_dags("dags/single_patient.py")


def states(run):
    return {ti.task_id: ti.state for ti in run.get_task_instances()}


@reschedules
def test_every_mode_waits_for_the_same_delivery(dags, healthex_sandbox):
    run = run_dag(dags.every_mode, healthex_sandbox)
    assert run.state == "success"
    results = [xcom(run, task_id) for task_id in ("poke", "reschedule", "deferred")]
    assert results[0] == results[1] == results[2]
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1


def test_operator_and_sensor_can_be_mapped(dags, healthex_sandbox):
    run = run_dag(dags.mapped, healthex_sandbox)
    assert run.state == "success"
    counts = {
        xcom(run, "arrival", index)["patient_id"]: xcom(run, "arrival", index)["object_count"] for index in range(3)
    }
    assert counts.keys() == {patients.IN_PROGRESS, patients.PARTIAL, patients.SEVERAL_FILES}
    assert counts[patients.SEVERAL_FILES] > 1


@reschedules
def test_where_nothing_comes_each_mode_times_out_and_soft_fail_skips(dags, healthex_sandbox):
    run = run_dag(dags.nothing_comes, healthex_sandbox)
    ended = states(run)
    for mode in ("poke", "reschedule", "deferred"):
        assert ended[f"{mode}_fails"] == "failed"
        assert ended[f"{mode}_skips"] == "skipped"


def test_airflow_retries_what_never_started(dags, healthex_sandbox):
    healthex_sandbox.faults.add("update", 429, retry_after=3600)
    run = run_dag(dags.retried, healthex_sandbox)
    assert run.state == "success"
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 2
    assert healthex_sandbox.accepted(patients.IN_PROGRESS) == 1


def test_airflow_does_not_retry_what_may_have_started(dags, healthex_sandbox):
    healthex_sandbox.faults.add("update", "cut_after")
    run = run_dag(dags.retried, healthex_sandbox)
    assert run.state == "failed"
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1
