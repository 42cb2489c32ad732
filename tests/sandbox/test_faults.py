from __future__ import annotations

import json
import time

import pytest
import requests
from helpers.sandbox import Caller

from airflow_provider_healthex.sandbox import Sandbox, patients
from airflow_provider_healthex.sandbox.faults import Faults

PATIENT = patients.IN_PROGRESS


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 401, 403])
def test_a_status_is_answered_that_often_and_nothing_is_done(sandbox, call, status):
    sandbox.faults.add("update", status, times=2)
    answers = [call.update(PATIENT) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [status, status, 201]
    assert answers[0].json()["statusCode"] == status
    assert "Retry-After" not in answers[0].headers
    assert (sandbox.asked(PATIENT), sandbox.accepted(PATIENT)) == (3, 1)
    assert [request.status for request in sandbox.requests(PATIENT)] == [status, status, 201]


@pytest.mark.parametrize(("given", "sent"), [(2, "2"), (0.5, "0.5"), ("Sun, 22 Nov 2026 19:00:00 GMT",) * 2])
def test_a_status_can_say_when_to_try_again(sandbox, call, given, sent):
    sandbox.faults.add("update", 429, retry_after=given)
    assert call.update(PATIENT).headers["Retry-After"] == sent


def test_a_status_can_have_any_text(sandbox, call):
    sandbox.faults.add("update", 503, body="Come back later.")
    assert call.update(PATIENT).text == "Come back later."


def test_slow_is_answered_later(sandbox, call):
    sandbox.faults.add("update", "slow", seconds=0.3)
    began = time.monotonic()
    assert call.update(PATIENT).status_code == 201
    assert time.monotonic() - began >= 0.3


def test_a_slow_call_counts_at_once(sandbox, call):
    sandbox.faults.add("update", "slow", seconds=5)
    with pytest.raises(requests.ReadTimeout):
        call.session.post(f"{sandbox.api_url}{update_path()}", json={}, timeout=0.2)
    assert (sandbox.asked(PATIENT), sandbox.accepted(PATIENT)) == (1, 0)


def test_a_reset_drops_what_is_still_slow(sandbox, call):
    sandbox.faults.add("update", "slow", seconds=60)
    with pytest.raises(requests.ReadTimeout):
        call.session.post(f"{sandbox.api_url}{update_path()}", json={}, timeout=0.2)
    sandbox.reset()
    assert call.update(PATIENT).status_code == 201
    assert (sandbox.asked(PATIENT), sandbox.accepted(PATIENT)) == (1, 1)


def test_cut_answers_nothing_and_does_nothing(sandbox, call):
    sandbox.faults.add("update", "cut")
    with pytest.raises(requests.ConnectionError):
        call.update(PATIENT)
    assert (sandbox.asked(PATIENT), sandbox.accepted(PATIENT)) == (1, 0)
    assert sandbox.requests(PATIENT)[0].status is None
    assert call.update(PATIENT).status_code == 201


def test_cut_after_does_it_and_sends_half_of_the_answer(sandbox, call):
    sandbox.faults.add("update", "cut_after")
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        call.update(PATIENT)
    assert (sandbox.asked(PATIENT), sandbox.accepted(PATIENT)) == (1, 1)
    assert sandbox.requests(PATIENT)[0].status is None


def test_garbage_does_it_and_says_something_else(sandbox, call):
    sandbox.faults.add("update", "garbage")
    answer = call.update(PATIENT)
    assert answer.status_code == 201
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.text)
    assert sandbox.accepted(PATIENT) == 1


def test_garbage_can_be_any_text(sandbox, call):
    sandbox.faults.add("update", "garbage", body='{"message": "SOMETHING_NEW"}')
    assert call.update(PATIENT).json() == {"message": "SOMETHING_NEW"}


@pytest.mark.parametrize(
    ("endpoint", "method", "path", "body"),
    [
        ("token", "POST", "/v1/auth/token", None),
        ("consents", "POST", "/v1/consents", {"consentTypes": [], "studyId": "project-demo"}),
        ("patients", "POST", "/v1/projects/project-demo/patients", {"patients": [{}]}),
        ("link", "POST", "/v1/projects/project-demo/link", {"externalId": "ext-partial"}),
        ("usage", "GET", "/v1/usage/summary", None),
        ("metadata", "GET", "/FHIR/R4/metadata", None),
    ],
)
def test_every_endpoint_can_fail(sandbox, call, endpoint, method, path, body):
    if endpoint == "token":
        body = {"apiKey": sandbox.api_key, "apiSecret": sandbox.api_secret}
    sandbox.faults.add(endpoint, 500)
    assert call(method, path, json=body).status_code == 500
    assert call(method, path, json=body).status_code in (200, 201)
    assert sandbox.calls(endpoint) == 2


def test_faults_come_in_the_order_they_were_added(sandbox, call):
    sandbox.faults.add("update", 429)
    sandbox.faults.add("update", 500)
    assert [call.update(PATIENT).status_code for _ in range(3)] == [429, 500, 201]


def test_a_fault_can_be_for_one_patient(sandbox, call):
    sandbox.faults.add("update", 500, patient_id=patients.PARTIAL)
    assert call.update(PATIENT).status_code == 201
    assert call.update(patients.PARTIAL).status_code == 500


def test_faults_can_be_taken_back(sandbox, call):
    sandbox.faults.add("update", 500, times=9)
    sandbox.faults.clear()
    assert call.update(PATIENT).status_code == 201


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("updates", 500), "got 'updates'"),
        (("update", "broken"), "got 'broken'"),
        (("update", 200), "got '200'"),
        (("update", 500, 0), "times must be a whole number from 1"),
        (("mail", "cut"), "SMTP status"),
    ],
)
def test_a_fault_that_does_not_exist_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Faults().add(*arguments)


def test_stopping_does_not_wait_for_slow_answers():
    with Sandbox(earlier_deliveries=False) as sandbox:
        sandbox.faults.add("update", "slow", seconds=60)
        with pytest.raises(requests.ReadTimeout):
            Caller(sandbox).session.post(f"{sandbox.api_url}{update_path()}", json={}, timeout=0.2)
        began = time.monotonic()
    assert time.monotonic() - began < 5


def update_path() -> str:
    return f"/v1/projects/project-demo/recruitment/identified-patients/{PATIENT}/$updateData"
