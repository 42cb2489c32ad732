"""The example of a cohort in chunks on Airflow, against a sandbox with a cohort."""

from __future__ import annotations

import pytest
from support import load_dags, run_dag, xcom

from airflow_provider_healthex.sandbox import Sandbox, patients

pytestmark = [pytest.mark.usefixtures("airflow_database"), pytest.mark.timeout(240)]

CHUNK = 30


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(delay=0.5, cohort=50, seed=1) as sandbox:
        yield sandbox


@pytest.fixture
def dag(monkeypatch, sandbox):
    settings = {"POKE_INTERVAL": 1, "QUIET_PERIOD": 1, "TIMEOUT": 4, "CHUNK": CHUNK}
    for name, value in settings.items():
        monkeypatch.setenv(f"HEALTHEX_EXAMPLE_{name}", str(value))
    for name, value in sandbox.airflow_environment().items():
        monkeypatch.setenv(name, value)
    return load_dags("example_dags/refresh_cohort.py").refresh_cohort()


def test_every_consented_patient_is_asked_once_and_what_arrived_is_worked_on(dag, sandbox):
    run = run_dag(dag, sandbox)
    assert run.state == "success"

    chunks = xcom(run, "patients")
    asked_for = [patient_id for chunk in chunks for patient_id in chunk]
    assert [len(chunk) for chunk in chunks[:-1]] == [CHUNK] * (len(chunks) - 1)
    assert len(chunks) > 1
    assert sandbox.asked_by_patient() == dict.fromkeys(asked_for, 1)
    # Consented, and for 10 more days.
    assert patients.CONSENT_ENDS_SOON not in asked_for

    accepted = [patient_id for patient_id in asked_for if sandbox.accepted(patient_id)]
    coming = [patient_id for patient_id in accepted if sandbox.scenario(patient_id).files]
    assert patients.NOTHING_CHANGED in accepted
    assert len(accepted) < len(asked_for)
    assert xcom(run, "report") == {"arrived": len(coming), "missing": len(accepted) - len(coming)}

    batches = xcom(run, "batches")
    assert sorted(one["patient_id"] for batch in batches for one in batch) == sorted(coming)
    counts = [xcom(run, "process", index) for index in range(len(batches))]
    assert sum(counts) == sum(len(sandbox.scenario(patient_id).file_names) for patient_id in coming)


def test_one_run_at_a_time_and_no_catching_up(dag):
    assert dag.max_active_runs == 1
    assert not dag.catchup
