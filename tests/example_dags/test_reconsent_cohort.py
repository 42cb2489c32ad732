"""The example that mails a cohort's patients to consent or sign in again, on Airflow, against the sandbox."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest
from helpers.outreach import LINK, address_of, follow, links
from helpers.support import load_dags, run_dag, run_sensor, task_states, xcom

from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

pytestmark = pytest.mark.usefixtures("airflow_database")

#: Patients whom a link helps.
TO_MAIL = [
    patients.CONSENT_EXPIRED,
    patients.CONSENT_NOT_FOUND,
    patients.AUTHENTICATION_EXPIRED,
    patients.AUTHENTICATION_NEEDED_NEW_FACILITY,
]
FOR_COORDINATOR = [patients.CONSENT_REVOKED, patients.UNLOCKED_OR_NO_TARGETED_LIST, patients.NEW_REASON]
IN_PROGRESS = [patients.IN_PROGRESS, patients.SEVERAL_FILES]
COORDINATOR = "coordinator@study.example"
PARAMS = {"healthex_conn_id": "healthex_default", "smtp_conn_id": "smtp_default", "project_id": "project-demo"}


@pytest.fixture
def dag(monkeypatch):
    settings = {"POKE_INTERVAL": 0.5, "QUIET_PERIOD": 1, "TIMEOUT": 30, "RETRY_DELAY": 0, "BATCH": 3}
    for name, value in settings.items():
        monkeypatch.setenv(f"HEALTHEX_EXAMPLE_{name}", str(value))
    return load_dags("example_dags/reconsent_cohort.py").reconsent_cohort()


@pytest.fixture
def mail_each(sandbox):
    """The example's function that mails a batch, with a look-up of addresses as argument."""
    module = load_dags("example_dags/reconsent_cohort.py")
    batch = [{"patient_id": each, "reason": patients.SCENARIOS[each].reason} for each in TO_MAIL[:3]]

    def mail_with(look_up=module.look_up):
        module.look_up = look_up
        return module.mail_each(batch, PARAMS)

    return mail_with


def arrival_since(update, patient, sandbox):
    return HealthExDataArrivalSensor(
        task_id="later",
        since=update["requested_at"],
        patient_id=patient,
        bucket_key=f"s3://{sandbox.bucket}/d/project-demo/{{healthexPatientId}}/",
        poke_interval=0.2,
        quiet_period=0.5,
        timeout=20,
    )


def to_coordinator(sandbox):
    return [mail for mail in sandbox.mails if mail.recipient == COORDINATOR]


def listed(html):
    return re.findall(r"<li>([^<]+)</li>", html)


def test_each_reason_has_its_mail_and_a_patient_who_acts_is_delivered_without_a_new_request(dag, sandbox):
    # One patient's answer has no reason at all.
    sandbox.faults.add(
        "update", "garbage", body=json.dumps({"message": "PATIENT_ACTION_NEEDED"}), patient_id=patients.PARTIAL
    )
    cohort = [*IN_PROGRESS, *TO_MAIL, *FOR_COORDINATOR, patients.PARTIAL]
    run = run_dag(dag, sandbox, patient_ids=cohort)
    assert run.state == "success"
    assert xcom(run, "report") == {"arrived": len(IN_PROGRESS), "missing": 0}

    assert sorted(links(sandbox)) == sorted(map(address_of, TO_MAIL))
    assert [len(xcom(run, "outreach", index)) for index in (0, 1)] == [3, 1]
    (mail,) = to_coordinator(sandbox)
    assert listed(mail.text) == [*FOR_COORDINATOR, patients.PARTIAL]
    assert not LINK.search(mail.text)
    assert "CONSENT_REVOKED" not in mail.text
    assert len(sandbox.mails) == len(TO_MAIL) + 1

    for patient in TO_MAIL:
        follow(links(sandbox)[address_of(patient)])
    for patient in TO_MAIL:
        assert run_sensor(arrival_since(xcom(run, "refresh"), patient, sandbox)).result["object_count"] == 1
    assert sandbox.asked_by_patient() == dict.fromkeys(cohort, 1)


def test_a_mapped_sensor_waits_for_each_patient_since_the_update(sandbox):
    dags = load_dags("dags/reconsented.py")

    def act_once_requested():
        while not all(map(sandbox.asked, dags.MUST_ACT)):
            time.sleep(0.05)
        for patient in dags.MUST_ACT:
            sandbox.act(patient)

    threading.Thread(target=act_once_requested, daemon=True).start()
    run = run_dag(dags.reconsented, sandbox)
    assert [xcom(run, "later", index)["object_count"] for index in (0, 1)] == [1, 1]
    assert set(sandbox.asked_by_patient().values()) == {1}


def test_a_bad_address_does_not_stop_the_others_and_goes_to_the_coordinator(dag, sandbox, task_log):
    sandbox.faults.add("mail", 550, patient_id=address_of(TO_MAIL[1]))
    run = run_dag(dag, sandbox, patient_ids=[patients.IN_PROGRESS, *TO_MAIL[:3]])
    assert run.state == "success"
    assert sorted(links(sandbox)) == sorted(map(address_of, [TO_MAIL[0], TO_MAIL[2]]))
    (mail,) = to_coordinator(sandbox)
    assert listed(mail.text) == [TO_MAIL[1]]
    assert "@patients.example" not in task_log()


def no_such_patient(patient_id):
    raise KeyError(f"no address of secret-{patient_id}")


@pytest.mark.parametrize(
    "answer",
    [
        lambda patient: (patients.external_id_of(patient), "müller-secret@patients.example"),
        lambda patient: (patients.external_id_of(patient), "a@patients.example\nBcc: secret@patients.example"),
        lambda patient: (patients.external_id_of(patient), None),
        lambda patient: ("ext-secret", "a@patients.example"),
        lambda patient: ("", "secret@patients.example"),
        no_such_patient,
    ],
)
def test_an_unusable_patient_of_a_batch_does_not_stop_the_others_and_is_not_printed(mail_each, sandbox, capsys, answer):
    def look_up(patient_id):
        return (
            answer(patient_id)
            if patient_id == TO_MAIL[1]
            else (patients.external_id_of(patient_id), address_of(patient_id))
        )

    assert mail_each(look_up) == [TO_MAIL[0], TO_MAIL[2]]
    assert sorted(links(sandbox)) == sorted(map(address_of, [TO_MAIL[0], TO_MAIL[2]]))
    printed = capsys.readouterr().out
    assert TO_MAIL[1] in printed
    assert "secret" not in printed
    assert "/link/" not in printed


def test_a_mail_server_that_disconnects_does_not_stop_the_others(mail_each, sandbox):
    sandbox.faults.add("mail", 421, patient_id=address_of(TO_MAIL[1]))
    assert mail_each() == [TO_MAIL[0], TO_MAIL[2]]


@pytest.mark.parametrize("status", [401, 403])
def test_an_error_that_every_patient_would_get_ends_the_batch(mail_each, sandbox, capsys, status):
    sandbox.faults.add("link", status, times=10)
    assert mail_each() == []
    assert capsys.readouterr().out.count("No link for") == 1


def test_a_patient_whose_request_failed_goes_to_the_coordinator(dag, sandbox):
    run = run_dag(dag, sandbox, patient_ids=[*IN_PROGRESS, *TO_MAIL[:2], patients.UNKNOWN])
    assert run.state == "success"
    (mail,) = to_coordinator(sandbox)
    assert listed(mail.text) == [patients.UNKNOWN]
    assert "answered with an error" in mail.text


def test_an_empty_list_mails_no_one(dag, sandbox):
    run = run_dag(dag, sandbox, patient_ids=[])
    assert task_states(run, "notify_coordinator") == ["skipped"]
    assert sandbox.mails == []


def test_a_retry_of_a_batch_without_a_mail_mails_each_patient_once(dag, sandbox):
    sandbox.faults.add("mail", 451, times=3)
    run = run_dag(dag, sandbox, patient_ids=[patients.IN_PROGRESS, *TO_MAIL[:3]])
    assert run.state == "success"
    assert sorted(mail.recipient for mail in sandbox.mails) == sorted(map(address_of, TO_MAIL[:3]))
    assert task_states(run, "notify_coordinator") == ["skipped"]


def test_a_patient_who_could_not_be_mailed_after_all_retries_goes_to_the_coordinator(dag, sandbox):
    sandbox.faults.add("mail", 550, times=3)  # the task, and two retries
    run = run_dag(dag, sandbox, patient_ids=[patients.IN_PROGRESS, TO_MAIL[0]])
    assert task_states(run, "outreach") == ["failed"]
    (mail,) = sandbox.mails
    assert (mail.recipient, listed(mail.text)) == (COORDINATOR, [TO_MAIL[0]])


def test_if_all_need_to_act_they_are_mailed_although_the_refresh_fails(dag, sandbox):
    run = run_dag(dag, sandbox, patient_ids=[TO_MAIL[0], patients.CONSENT_REVOKED])
    assert run.state == "failed"
    assert task_states(run, "refresh") == ["failed"]
    assert list(links(sandbox)) == [address_of(TO_MAIL[0])]
    assert len(to_coordinator(sandbox)) == 1


def test_if_no_patient_needs_to_act_no_one_is_mailed(dag, sandbox):
    run = run_dag(dag, sandbox, patient_ids=IN_PROGRESS)
    assert run.state == "success"
    assert sandbox.mails == []
    assert task_states(run, "notify_coordinator") == ["skipped"]
