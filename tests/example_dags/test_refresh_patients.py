"""The example of a few independent patients, on Airflow, against the sandbox."""

from __future__ import annotations

import pytest
from helpers.support import load_dags, run_dag, task_states, xcom

from airflow_provider_healthex.sandbox import patients

pytestmark = [pytest.mark.usefixtures("airflow_database"), pytest.mark.timeout(120)]

READABLE = [patients.FIRST_DELIVERY, patients.IN_PROGRESS, patients.PARTIAL]


@pytest.fixture
def dag(monkeypatch):
    for name in ("POKE_INTERVAL", "QUIET_PERIOD"):
        monkeypatch.setenv(f"HEALTHEX_EXAMPLE_{name}", "0.5")
    return load_dags("example_dags/refresh_patients.py").refresh_patients()


def test_an_unknown_patient_and_one_who_needs_to_act_leave_the_others_alone(dag, sandbox):
    all_ids = [READABLE[0], patients.UNKNOWN, READABLE[1], patients.CONSENT_EXPIRED, READABLE[2]]
    run = run_dag(dag, sandbox, patient_ids=all_ids)

    assert task_states(run, "refresh_one.read") == ["success", "upstream_failed", "success", "skipped", "success"]
    assert xcom(run, "report") == dict.fromkeys(READABLE, 1)
    assert sandbox.asked_by_patient() == dict.fromkeys(all_ids, 1)
    # An unknown patient is an error: a person has to correct the list.
    assert run.state == "failed"


def test_a_patient_who_needs_to_act_is_no_failure_of_the_run(dag, sandbox):
    run = run_dag(dag, sandbox, patient_ids=[patients.CONSENT_EXPIRED, patients.IN_PROGRESS])
    assert task_states(run, "refresh_one.read") == ["skipped", "success"]
    assert xcom(run, "report") == {patients.IN_PROGRESS: 1}
    assert run.state == "success"


def test_the_report_runs_also_if_no_data_was_read(dag, sandbox):
    run = run_dag(dag, sandbox, patient_ids=[patients.CONSENT_EXPIRED])
    assert xcom(run, "report") == {}
