"""Results of the hook that a task returns and Airflow stores."""

from __future__ import annotations

import json

import pytest
from helpers.support import load_dags, run_dag, xcom

from airflow_provider_healthex.sandbox import patients


@pytest.mark.usefixtures("airflow_database")
def test_results_of_the_hook_travel_through_xcom(healthex_sandbox):
    run = run_dag(load_dags("dags/returned.py").returned, healthex_sandbox)
    assert {ti.task_id: ti.state for ti in run.get_task_instances() if ti.state != "success"} == {}
    assert xcom(run, "arrival_of_refresh")["patient_id"] == patients.IN_PROGRESS
    assert xcom(run, "arrival_of_refresh")["since"] == xcom(run, "refresh")["requested_at"]
    assert xcom(run, "arrival_of_refresh_annotated")["patient_id"] == patients.SEVERAL_FILES
    read = xcom(run, "read")
    updates = {update["patient_id"]: update for update in read["updates"]}
    assert updates[patients.PARTIAL]["message"] == "IN_PROGRESS_NO_ACTION_NEEDED"
    assert updates[patients.CONSENT_EXPIRED]["patient_action_needed_reason"] == "CONSENT_EXPIRED"
    assert updates[patients.UNKNOWN]["error"] == "HealthExNotFoundError"
    assert updates[patients.UNKNOWN]["status_code"] == 404
    assert patients.IN_PROGRESS in {patient["patient_id"] for patient in read["consented"]}
    assert read["added"]["result"]["total_processed"] == 2
    assert not {"Ann", "Quist", "ann@example.org"} & set(json.dumps(read).replace('"', " ").split())
