"""Which consented patients are listed, in which order, and in how many chunks."""

from __future__ import annotations

import time

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from helpers.loopback import Service, make_jwt, says, status
from helpers.operators import connection

from airflow_provider_healthex.client import rate_limit
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExRateLimitError
from airflow_provider_healthex.operators.healthex import HealthExListConsentedPatientsOperator
from airflow_provider_healthex.sandbox import patients

DAY = 24 * 3600


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(rate_limit, "_rate_limits", {})
    running = Service()
    monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", connection(running.url, make_jwt()))
    yield running
    running.close()


def consent(patient_id, days=None):
    end = {} if days is None else {"expirationTimestamp": int(time.time() + days * DAY)}
    return {"patientId": patient_id, "consents": [{"hasPatientConsented": True, **end}]}


def listed(**arguments):
    return HealthExListConsentedPatientsOperator(task_id="listed", **arguments).execute({})


def test_the_sandboxs_consented_patients_are_listed(healthex_sandbox):
    found = listed()
    assert found == sorted(found)
    assert {patients.IN_PROGRESS, patients.CONSENT_ENDS_SOON} <= set(found)
    assert not {patients.CONSENT_EXPIRED, patients.CONSENT_NOT_FOUND, patients.CONSENT_REVOKED} & set(found)


def test_a_patient_whose_consent_ends_soon_is_left_out(healthex_sandbox):
    assert set(listed()) - set(listed(min_days_left=30)) == {patients.CONSENT_ENDS_SOON}


def test_days_are_counted_from_now_and_a_consent_without_an_end_is_listed(service, task_log):
    service.answers(says([consent("c", 10.01), consent("b", 9.99), consent("a"), consent("ended", -1)]))
    assert listed(min_days_left=10) == ["a", "c"]
    assert listed() == ["a", "b", "c"]
    assert (
        "2 of 4 consented patients listed. Consent ends within 10 days, left out: 2. No end reported: 1" in task_log()
    )


@pytest.mark.parametrize(
    ("size", "chunks"),
    [(2, [["a", "b"], ["c", "d"], ["e"]]), (5, [["a", "b", "c", "d", "e"]]), (99, [["a", "b", "c", "d", "e"]])],
)
def test_chunks_are_ready_to_be_mapped_over(service, size, chunks):
    service.answers(says([consent(each) for each in "ecadb"]))
    assert listed(chunk_size=size) == chunks


def test_without_patients_there_is_no_chunk(service):
    service.answers(says([]))
    assert listed() == []
    assert listed(chunk_size=10) == []


def test_more_chunks_than_airflow_maps_over_are_logged_as_a_warning(service, task_log):
    service.answers(says([consent(f"p-{number:05}") for number in range(3000)]))
    assert len(listed(chunk_size=3)) == 1000
    assert "chunk_size" not in task_log()
    assert len(listed(chunk_size=2)) == 1500
    assert "Too many chunks: 1500, and Airflow maps over at most 1024. Set chunk_size to 3 or more" in task_log()


@pytest.mark.parametrize(
    "argument", [{"chunk_size": 0}, {"chunk_size": 1.5}, {"chunk_size": True}, {"min_days_left": -1}]
)
def test_arguments_are_checked_when_the_dag_is_parsed(argument):
    with pytest.raises(HealthExConfigurationError, match=next(iter(argument))):
        HealthExListConsentedPatientsOperator(task_id="listed", **argument)


def test_a_permanent_error_is_not_retried(service):
    service.answers(status(403))
    with pytest.raises(AirflowFailException, match="403"):
        listed()


def test_a_429_is_retryable(service):
    service.answers(status(429, Retry_After="3600"))
    with pytest.raises(HealthExRateLimitError):
        listed()


def test_the_documented_fields_are_templated():
    assert HealthExListConsentedPatientsOperator.template_fields == ("project_id", "healthex_conn_id")
