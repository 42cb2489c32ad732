"""The example of a cohort in chunks on Airflow, against the sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from helpers.support import load_dags, run_dag, task_states, xcom

from airflow_provider_healthex.sandbox import Sandbox, patients

pytestmark = [pytest.mark.usefixtures("airflow_database"), pytest.mark.timeout(240)]

CHUNK = 30
READABLE = [patients.FIRST_DELIVERY, patients.IN_PROGRESS, patients.PARTIAL]


@pytest.fixture(scope="module")
def cohort():
    with Sandbox(delay=0.5, cohort=50, seed=1) as sandbox:
        yield sandbox


@pytest.fixture
def load(monkeypatch) -> Callable[..., Any]:
    """Load the example, with chunks of a size."""

    def dag_with(sandbox: Sandbox, chunk: int, timeout: float = 60) -> Any:
        settings = {"POKE_INTERVAL": 0.5, "QUIET_PERIOD": 0.5, "TIMEOUT": timeout, "CHUNK": chunk}
        for name, value in settings.items():
            monkeypatch.setenv(f"HEALTHEX_EXAMPLE_{name}", str(value))
        for name, value in sandbox.airflow_environment().items():
            monkeypatch.setenv(name, value)
        return load_dags("example_dags/refresh_cohort.py").refresh_cohort()

    return dag_with


def set_consented(sandbox: Sandbox, *patient_ids: str) -> None:
    """Make the sandbox list these patients, and no others."""
    consent = {"consentType": "PATIENT_DIRECTED_DATA_EXCHANGE", "studyId": "project-demo", "hasPatientConsented": True}
    rows = [{"patientId": patient_id, "consents": [consent]} for patient_id in patient_ids]
    sandbox.faults.add("consents", "garbage", body=json.dumps(rows))


def processed(run: Any) -> list[str]:
    """Return the patients whose data was processed, once for each time."""
    done = task_states(run, "process").count("success")
    return sorted(one["patient_id"] for batch in xcom(run, "batches")[:done] for one in batch)


def test_every_consented_patient_is_requested_once_and_what_arrived_is_processed(load, cohort):
    # Some of the cohort have no delivery: the sensors wait for them until the deadline.
    run = run_dag(load(cohort, CHUNK, timeout=4), cohort)

    chunks = xcom(run, "patients")
    requested = [patient_id for chunk in chunks for patient_id in chunk]
    assert [len(chunk) for chunk in chunks[:-1]] == [CHUNK] * (len(chunks) - 1)
    assert len(chunks) > 1
    assert cohort.asked_by_patient() == dict.fromkeys(requested, 1)
    # Consented, and for 10 more days.
    assert patients.CONSENT_ENDS_SOON not in requested

    accepted = [patient_id for patient_id in requested if cohort.accepted(patient_id)]
    coming = [patient_id for patient_id in accepted if cohort.scenario(patient_id).files]
    assert patients.NOTHING_CHANGED in accepted
    assert len(accepted) < len(requested)
    assert xcom(run, "report") == {"arrived": len(coming), "missing": len(accepted) - len(coming)}
    assert processed(run) == sorted(coming)
    counts = [xcom(run, "process", index) for index in range(len(xcom(run, "batches")))]
    assert sum(counts) == sum(len(cohort.scenario(patient_id).file_names) for patient_id in coming)
    assert run.state == "success"


def test_an_unknown_patient_and_one_who_needs_to_act_leave_the_others_of_their_chunk_alone(load, sandbox):
    cohort_ids = [*READABLE, patients.CONSENT_EXPIRED, patients.UNKNOWN]
    set_consented(sandbox, *cohort_ids)
    run = run_dag(load(sandbox, chunk=5), sandbox)
    assert processed(run) == READABLE
    assert xcom(run, "report") == {"arrived": 3, "missing": 0}
    assert sandbox.asked_by_patient() == dict.fromkeys(cohort_ids, 1)
    assert run.state == "success"


def test_the_accepted_patients_of_a_chunk_that_failed_are_processed_and_the_run_fails(load, sandbox):
    # Chunks, those without an earlier delivery last: two in progress and one who needs to act; one in progress and two
    # failures, too many; none accepted.
    failing = (patients.PROJECT_PAUSED, patients.UNKNOWN, f"{patients.UNKNOWN}-too")
    set_consented(sandbox, patients.CONSENT_EXPIRED, *READABLE, *failing)
    run = run_dag(load(sandbox, chunk=3), sandbox)
    assert task_states(run, "healthex_refresh.chunk.refresh") == ["success", "failed", "failed"]
    assert task_states(run, "healthex_refresh.chunk.arrival") == ["success", "success", "success"]
    assert processed(run) == READABLE
    assert xcom(run, "report") == {"arrived": 3, "missing": 0}
    assert task_states(run, "healthex_refresh.watcher") == ["failed"]
    assert run.state == "failed"


def test_a_chunk_that_left_no_result_fails_and_the_others_are_processed(load, sandbox):
    # An unusable id: the operator refuses the chunk before it requests any patient.
    set_consented(sandbox, *READABLE, "patient..unusable")
    run = run_dag(load(sandbox, chunk=3), sandbox)
    assert task_states(run, "healthex_refresh.chunk.arrival") == ["success", "failed"]
    assert processed(run) == READABLE
    assert xcom(run, "report") == {"arrived": 3, "missing": 0}
    assert sandbox.asked_by_patient() == dict.fromkeys(READABLE, 1)
    assert run.state == "failed"


def test_too_few_deliveries_fail_the_run_and_those_that_came_are_processed(load, sandbox):
    set_consented(sandbox, patients.IN_PROGRESS, patients.NOTHING_CHANGED)
    run = run_dag(load(sandbox, chunk=2, timeout=4), sandbox)
    assert processed(run) == [patients.IN_PROGRESS]
    assert task_states(run, "report") == ["failed"]
    assert run.state == "failed"


def test_without_consented_patients_nothing_is_requested_and_nothing_fails(load, sandbox):
    set_consented(sandbox)
    run = run_dag(load(sandbox, chunk=2), sandbox)
    assert set(task_states(run, "healthex_refresh.chunk.arrival")) == {"skipped"}
    assert xcom(run, "report") == {"arrived": 0, "missing": 0}
    assert run.state == "success"


def test_a_second_run_right_after_the_first_delivers_requests_nobody(load, sandbox):
    dag = load(sandbox, chunk=5)
    set_consented(sandbox, *READABLE)
    assert run_dag(dag, sandbox).state == "success"
    set_consented(sandbox, *READABLE)
    second = run_dag(dag, sandbox)
    assert xcom(second, "patients") == []
    assert second.state == "success"
    assert sandbox.asked_by_patient() == dict.fromkeys(READABLE, 1)


def test_if_patients_cannot_be_listed_nothing_is_requested_and_the_run_fails(load, sandbox):
    sandbox.faults.add("consents", 403)
    run = run_dag(load(sandbox, chunk=2), sandbox)
    assert sandbox.asked_by_patient() == {}
    assert run.state == "failed"
