"""The example DAG on Airflow, against the sandbox."""

from __future__ import annotations

import pytest
from helpers.support import load_dags, run_dag, xcom

from airflow_provider_healthex.sandbox import patients

pytestmark = pytest.mark.usefixtures("airflow_database")


@pytest.fixture
def dag(monkeypatch):
    monkeypatch.setenv("HEALTHEX_EXAMPLE_POKE_INTERVAL", "1")
    monkeypatch.setenv("HEALTHEX_EXAMPLE_QUIET_PERIOD", "1")
    return load_dags("example_dags/refresh_patient.py").refresh_patient()


def test_the_refreshed_files_are_read(dag, healthex_sandbox):
    run = run_dag(dag, healthex_sandbox)
    assert run.state == "success"
    delivery = xcom(run, "arrival")
    assert delivery["keys"] == [f"d/project-demo/{patients.IN_PROGRESS}/bundle.json"]
    assert delivery["since"] == xcom(run, "refresh")["requested_at"]
    assert delivery["first_modified"] >= delivery["since"]
    assert xcom(run, "read")["Patient"] == 1
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1


@pytest.mark.parametrize("patient", [patients.UNKNOWN, patients.FORBIDDEN, patients.CONSENT_EXPIRED])
def test_a_patient_that_cannot_be_refreshed_fails_the_run_after_one_request(dag, healthex_sandbox, patient):
    run = run_dag(dag, healthex_sandbox, patient_id=patient)
    assert run.state == "failed"
    assert {ti.task_id: ti.state for ti in run.get_task_instances()}["arrival"] == "upstream_failed"
    assert healthex_sandbox.asked(patient) == 1
