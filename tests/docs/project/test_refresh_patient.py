from pathlib import Path

import pytest
from airflow.models import DagBag


@pytest.fixture(scope="session")
def dag():
    bag = DagBag(Path(__file__).parent / "dags")
    assert not bag.import_errors
    return bag.dags["refresh_patient"]


def run(dag, sandbox, patient_id):
    return dag.test(run_conf={"patient_id": patient_id, "bucket": sandbox.bucket, "path": sandbox.path})


def test_a_request_is_retried_when_the_service_is_busy(dag, healthex_sandbox):
    patient = healthex_sandbox.patients.IN_PROGRESS
    healthex_sandbox.faults.add("update", 429, times=2, retry_after=1)
    assert run(dag, healthex_sandbox, patient).state == "success"
    assert (healthex_sandbox.asked(patient), healthex_sandbox.accepted(patient)) == (3, 1)


def test_patient_action_needed_fails_the_run(dag, healthex_sandbox):
    assert run(dag, healthex_sandbox, healthex_sandbox.patients.CONSENT_EXPIRED).state == "failed"
