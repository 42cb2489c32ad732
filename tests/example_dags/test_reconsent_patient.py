"""The example that mails a patient to consent or sign in again, on Airflow, against the sandbox and its mailbox."""

from __future__ import annotations

import json
import traceback

import pytest
from helpers.outreach import LINK, address_of, follow_the_link, links, people
from helpers.support import load_dags, run_dag, xcom

from airflow_provider_healthex.sandbox import patients

pytestmark = pytest.mark.usefixtures("airflow_database")

ASK_TO_CONSENT = [patients.CONSENT_EXPIRED, patients.CONSENT_NOT_FOUND]
ASK_TO_SIGN_IN = [patients.AUTHENTICATION_EXPIRED, patients.AUTHENTICATION_NEEDED_NEW_FACILITY]
NOTIFY_COORDINATOR = [patients.CONSENT_REVOKED, patients.UNLOCKED_OR_NO_TARGETED_LIST, patients.NEW_REASON]
STEPS = {"arrival", "ask_to_consent", "ask_to_sign_in", "notify_coordinator"}

COORDINATOR = "coordinator@study.example"


@pytest.fixture
def dag(monkeypatch):
    for name, value in {"POKE_INTERVAL": 0.5, "QUIET_PERIOD": 0.5, "TIMEOUT": 60, "RETRY_DELAY": 0}.items():
        monkeypatch.setenv(f"HEALTHEX_EXAMPLE_{name}", str(value))
    return load_dags("example_dags/reconsent_patient.py").reconsent_patient()


def run(dag, sandbox, patient):
    return run_dag(dag, sandbox, patient_id=patient, external_id=patients.external_id_of(patient))


def states(run):
    return {ti.task_id: ti.state for ti in run.get_task_instances()}


def steps_taken(run):
    return {task_id for task_id, state in states(run).items() if task_id in STEPS and state == "success"}


def assert_it_arrived_by_the_one_request(run, sandbox, patient):
    assert run.state == "success"
    assert xcom(run, "arrival")["patient_id"] == patient
    assert xcom(run, "arrival")["since"] == xcom(run, "refresh")["requested_at"]
    assert xcom(run, "read") == 1
    assert sandbox.asked(patient) == 1


@pytest.mark.parametrize(
    ("patient", "step"),
    [*((each, "ask_to_consent") for each in ASK_TO_CONSENT), *((each, "ask_to_sign_in") for each in ASK_TO_SIGN_IN)],
)
def test_the_patient_is_mailed_a_link_and_the_data_arrives_when_it_is_followed(dag, sandbox, patient, step):
    with people(sandbox, follow_the_link):
        ended = run(dag, sandbox, patient)
    assert_it_arrived_by_the_one_request(ended, sandbox, patient)
    assert steps_taken(ended) == {"arrival", step}
    assert list(links(sandbox)) == [address_of(patient)]
    assert len(sandbox.mails) == 1


@pytest.mark.parametrize("patient", NOTIFY_COORDINATOR)
def test_for_other_reasons_the_coordinator_is_mailed_and_the_data_is_still_waited_for(dag, sandbox, patient):
    with people(sandbox, lambda mail: sandbox.act(patient)):
        ended = run(dag, sandbox, patient)
    assert_it_arrived_by_the_one_request(ended, sandbox, patient)
    assert steps_taken(ended) == {"arrival", "notify_coordinator"}
    (mail,) = sandbox.mails
    assert mail.recipient == COORDINATOR
    assert patient in mail.text
    assert not LINK.search(mail.text)
    for attribute in (xcom(ended, "refresh")["patient_action_needed_reason"], patients.external_id_of(patient)):
        assert attribute not in mail.subject + mail.text


def test_a_missing_reason_goes_to_the_coordinator(dag, sandbox, monkeypatch):
    monkeypatch.setenv("HEALTHEX_EXAMPLE_TIMEOUT", "0.5")
    dag = load_dags("example_dags/reconsent_patient.py").reconsent_patient()
    sandbox.faults.add("update", "garbage", body=json.dumps({"message": "PATIENT_ACTION_NEEDED"}))
    ended = run(dag, sandbox, patients.CONSENT_EXPIRED)
    assert xcom(ended, "refresh")["patient_action_needed_reason"] is None
    assert [mail.recipient for mail in sandbox.mails] == [COORDINATOR]
    # A patient who doesn't act until the timeout is skipped, and the run does not fail.
    assert states(ended)["arrival"] == states(ended)["read"] == "skipped"
    assert ended.state == "success"


def test_a_patient_in_progress_is_waited_for_at_once(dag, sandbox):
    ended = run(dag, sandbox, patients.IN_PROGRESS)
    assert_it_arrived_by_the_one_request(ended, sandbox, patients.IN_PROGRESS)
    assert steps_taken(ended) == {"arrival"}
    assert sandbox.mails == []


def test_a_refused_mail_is_retried_and_neither_address_nor_link_is_logged(dag, sandbox, task_log):
    sandbox.faults.add("mail", 451, body="No room for ext-consent-expired@patients.example")
    with people(sandbox, follow_the_link):
        ended = run(dag, sandbox, patients.CONSENT_EXPIRED)
    assert_it_arrived_by_the_one_request(ended, sandbox, patients.CONSENT_EXPIRED)
    assert len(sandbox.mails) == 1
    log = task_log()
    assert "The mail was not sent: SMTPRecipientsRefused" in log
    assert "@patients.example" not in log
    assert "/link/" not in log


@pytest.mark.parametrize("address", ["müller-secret@patients.example", "a\r\nmüller-secret@patients.example", None])
def test_an_unusable_address_is_reported_by_the_type_of_the_error_alone(dag, sandbox, monkeypatch, address):
    module = load_dags("example_dags/reconsent_patient.py")
    monkeypatch.setattr(module, "address_of", lambda external_id: address)
    params = {"healthex_conn_id": "healthex_default", "smtp_conn_id": "smtp_default", "project_id": "project-demo"}
    external_id = patients.external_id_of(patients.CONSENT_EXPIRED)
    with pytest.raises(RuntimeError, match=r"The mail was not sent: \w+Error$") as caught:
        module.mail_link({**params, "external_id": external_id}, "subject", "text")
    message = "".join(traceback.format_exception(caught.value))
    assert "müller-secret" not in message
    assert "/link/" not in message
    assert sandbox.mails == []


def test_without_a_mail_server_the_run_fails_and_logs_the_cause(dag, sandbox, monkeypatch, task_log):
    nowhere = {**sandbox.connections()["smtp_default"], "port": 1}
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(nowhere))
    ended = run(dag, sandbox, patients.CONSENT_EXPIRED)
    assert ended.state == "failed"
    assert (states(ended)["ask_to_consent"], states(ended)["arrival"]) == ("failed", "upstream_failed")
    assert sandbox.asked(patients.CONSENT_EXPIRED) == 1
    log = task_log()
    assert "Connection refused" in log
    assert "/link/" not in log


def test_an_external_id_unknown_to_healthex_fails_the_run(dag, sandbox, task_log):
    ended = run_dag(dag, sandbox, patient_id=patients.CONSENT_EXPIRED, external_id="ext-nobody")
    assert states(ended)["ask_to_consent"] == "failed"
    assert sandbox.mails == []
    assert "Patient not found for provided externalId" in " ".join(task_log().split())  # 3.0 breaks lines
