"""The cohort operator in DAGs that Airflow runs."""

from __future__ import annotations

import pytest
from airflow import __version__ as airflow_version
from helpers.support import load_dags, run_dag, xcom

from airflow_provider_healthex.sandbox import patients

pytestmark = pytest.mark.usefixtures("airflow_database")

HAS_STATE_STORE = tuple(int(part) for part in airflow_version.split(".")[:2]) >= (3, 3)


@pytest.fixture(scope="module")
def dags():
    return load_dags("dags/cohort.py")


def test_the_consented_patients_are_refreshed_in_chunks(dags, healthex_sandbox):
    run = run_dag(dags.in_chunks, healthex_sandbox)
    chunks = xcom(run, "listed")
    assert len(chunks) > 1
    results = {ti.map_index: ti.state for ti in run.get_task_instances() if ti.task_id == "refresh"}
    assert len(results) == len(chunks)
    if HAS_STATE_STORE:  # and so a newer Airflow, which takes an operator's own default
        names = {ti.map_index: ti.rendered_map_index for ti in run.get_task_instances() if ti.task_id == "refresh"}
        assert names == {index: f"chunk {index}" for index in results}
    for index, chunk in enumerate(chunks):
        result = xcom(run, "refresh", index)
        found = [*result["in_progress"], *result["patient_action_needed"], *result["failed"]]
        assert sorted(entry["patient_id"] for entry in found) == chunk
        assert results[index] == ("success" if result["in_progress"] else "failed")
    assert {healthex_sandbox.asked(patient_id) for chunk in chunks for patient_id in chunk} == {1}


def test_a_retry_requests_the_rest_with_a_state_store_and_airflow_does_not_retry_without(dags, healthex_sandbox):
    healthex_sandbox.faults.add("update", 429, retry_after=3600, patient_id=patients.PARTIAL)
    run = run_dag(dags.retried, healthex_sandbox)
    assert run.state == ("success" if HAS_STATE_STORE else "failed")
    result = xcom(run, "refresh")
    assert len(result["in_progress"]) == (3 if HAS_STATE_STORE else 2)
    counts = [healthex_sandbox.asked(each) for each in (patients.IN_PROGRESS, patients.SEVERAL_FILES)]
    assert max(counts) == 1
    assert healthex_sandbox.asked(patients.PARTIAL) == (2 if HAS_STATE_STORE else 1)


def test_ids_may_come_from_a_template(dags, healthex_sandbox):
    run = run_dag(dags.from_a_template, healthex_sandbox, patient_ids=[patients.IN_PROGRESS, patients.PARTIAL])
    assert run.state == "success"
    assert len(xcom(run, "refresh")["in_progress"]) == 2


def test_an_empty_list_is_skipped(dags, healthex_sandbox):
    run = run_dag(dags.from_a_template, healthex_sandbox, patient_ids=[])
    assert [ti.state for ti in run.get_task_instances()] == ["skipped"]


def test_a_number_that_json_made_of_an_id_fails_before_any_request(dags, healthex_sandbox):
    run = run_dag(dags.from_a_template, healthex_sandbox, patient_ids=[patients.IN_PROGRESS, 694061])
    assert run.state == "failed"
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 0


@pytest.mark.skipif(not HAS_STATE_STORE, reason="needs Airflow 3.3")
def test_retries_edited_between_two_tries_request_no_patient_twice(dags, healthex_sandbox):
    healthex_sandbox.faults.add("update", 429, retry_after=3600, patient_id=patients.PARTIAL)
    run = run_dag(dags.edited, healthex_sandbox)
    assert run.state == "success"
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1
    assert healthex_sandbox.accepted(patients.PARTIAL) == 1
