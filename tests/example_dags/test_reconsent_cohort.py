"""The example that asks a cohort's patients to consent or sign in again, on Airflow, against the sandbox."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest
from outreach import LINK, address_of, follow, links
from support import load_dags, run_dag, run_sensor, task_states, xcom

from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

pytestmark = pytest.mark.usefixtures("airflow_database")

#: A link helps them.
TO_ASK = [
    patients.CONSENT_EXPIRED,
    patients.CONSENT_NOT_FOUND,
    patients.AUTHENTICATION_EXPIRED,
    patients.AUTHENTICATION_NEEDED_NEW_FACILITY,
]
FOR_PEOPLE = [patients.CONSENT_REVOKED, patients.UNLOCKED_OR_NO_TARGETED_LIST, patients.NEW_REASON]
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
def write_to_each(sandbox):
    """The example's part that mails a batch, with another look-up of addresses."""
    module = load_dags("example_dags/reconsent_cohort.py")
    batch = [{"patient_id": each, "reason": patients.SCENARIOS[each].reason} for each in TO_ASK[:3]]

    def write(look_up=module.look_up):
        module.look_up = look_up
        return module.write_to_each(batch, PARAMS)

    return write


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


def test_each_reason_goes_its_way_and_who_follows_the_link_is_delivered_without_a_new_request(dag, sandbox):
    # One patient's answer has no reason at all.
    sandbox.faults.add(
        "update", "garbage", body=json.dumps({"message": "PATIENT_ACTION_NEEDED"}), patient_id=patients.PARTIAL
    )
    everybody = [*IN_PROGRESS, *TO_ASK, *FOR_PEOPLE, patients.PARTIAL]
    run = run_dag(dag, sandbox, patient_ids=everybody)
    assert run.state == "success"
    assert xcom(run, "report") == {"arrived": len(IN_PROGRESS), "missing": 0}

    assert sorted(links(sandbox)) == sorted(map(address_of, TO_ASK))
    assert [len(xcom(run, "outreach", index)) for index in (0, 1)] == [3, 1]
    (mail,) = to_coordinator(sandbox)
    assert listed(mail.text) == [*FOR_PEOPLE, patients.PARTIAL]
    assert not LINK.search(mail.text)
    assert "CONSENT_REVOKED" not in mail.text
    assert len(sandbox.mails) == len(TO_ASK) + 1

    for patient in TO_ASK:
        follow(links(sandbox)[address_of(patient)])
    for patient in TO_ASK:
        assert run_sensor(arrival_since(xcom(run, "refresh"), patient, sandbox)).result["object_count"] == 1
    assert sandbox.asked_by_patient() == dict.fromkeys(everybody, 1)


def test_a_sensor_for_each_can_wait_on_with_the_updates_time(sandbox):
    dags = load_dags("dags/reconsented.py")

    def act_when_asked_for():
        while not all(map(sandbox.asked, dags.MUST_ACT)):
            time.sleep(0.05)
        for patient in dags.MUST_ACT:
            sandbox.act(patient)

    threading.Thread(target=act_when_asked_for, daemon=True).start()
    run = run_dag(dags.reconsented, sandbox)
    assert [xcom(run, "later", index)["object_count"] for index in (0, 1)] == [1, 1]
    assert set(sandbox.asked_by_patient().values()) == {1}


def test_a_bad_address_stops_nobody_else_and_the_coordinator_is_told(dag, sandbox, task_log):
    sandbox.faults.add("mail", 550, patient_id=address_of(TO_ASK[1]))
    run = run_dag(dag, sandbox, patient_ids=[patients.IN_PROGRESS, *TO_ASK[:3]])
    assert run.state == "success"
    assert sorted(links(sandbox)) == sorted(map(address_of, [TO_ASK[0], TO_ASK[2]]))
    (mail,) = to_coordinator(sandbox)
    assert listed(mail.text) == [TO_ASK[1]]
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
def test_whatever_is_wrong_with_one_of_a_batch_stops_nobody_else_and_is_not_told(
    write_to_each, sandbox, capsys, answer
):
    def look_up(patient_id):
        return (
            answer(patient_id)
            if patient_id == TO_ASK[1]
            else (patients.external_id_of(patient_id), address_of(patient_id))
        )

    assert write_to_each(look_up) == [TO_ASK[0], TO_ASK[2]]
    assert sorted(links(sandbox)) == sorted(map(address_of, [TO_ASK[0], TO_ASK[2]]))
    told = capsys.readouterr().out
    assert TO_ASK[1] in told
    assert "secret" not in told
    assert "/link/" not in told


def test_a_mail_server_that_hangs_up_on_one_stops_nobody_else(write_to_each, sandbox):
    sandbox.faults.add("mail", 421, patient_id=address_of(TO_ASK[1]))
    assert write_to_each() == [TO_ASK[0], TO_ASK[2]]


@pytest.mark.parametrize("status", [401, 403])
def test_what_everybody_would_meet_ends_the_batch(write_to_each, sandbox, capsys, status):
    sandbox.faults.add("link", status, times=10)
    assert write_to_each() == []
    assert capsys.readouterr().out.count("No link for") == 1


def test_whom_healthex_could_not_be_asked_for_is_told_to_the_coordinator(dag, sandbox):
    run = run_dag(dag, sandbox, patient_ids=[*IN_PROGRESS, *TO_ASK[:2], patients.UNKNOWN])
    assert run.state == "success"
    (mail,) = to_coordinator(sandbox)
    assert listed(mail.text) == [patients.UNKNOWN]
    assert "answered with an error" in mail.text


def test_nobody_to_ask_for_is_nobody_to_write_to(dag, sandbox):
    run = run_dag(dag, sandbox, patient_ids=[])
    assert task_states(run, "tell_coordinator") == ["skipped"]
    assert sandbox.mails == []


def test_where_nobody_could_be_written_to_a_retry_writes_to_all_once(dag, sandbox):
    sandbox.faults.add("mail", 451, times=3)
    run = run_dag(dag, sandbox, patient_ids=[patients.IN_PROGRESS, *TO_ASK[:3]])
    assert run.state == "success"
    assert sorted(mail.recipient for mail in sandbox.mails) == sorted(map(address_of, TO_ASK[:3]))
    assert task_states(run, "tell_coordinator") == ["skipped"]


def test_who_could_not_be_written_to_at_last_is_for_the_coordinator(dag, sandbox):
    sandbox.faults.add("mail", 550, times=3)  # the task, and two retries
    run = run_dag(dag, sandbox, patient_ids=[patients.IN_PROGRESS, TO_ASK[0]])
    assert task_states(run, "outreach") == ["failed"]
    (mail,) = sandbox.mails
    assert (mail.recipient, listed(mail.text)) == (COORDINATOR, [TO_ASK[0]])


def test_where_all_must_act_they_are_asked_although_the_refresh_fails(dag, sandbox):
    run = run_dag(dag, sandbox, patient_ids=[TO_ASK[0], patients.CONSENT_REVOKED])
    assert run.state == "failed"
    assert task_states(run, "refresh") == ["failed"]
    assert list(links(sandbox)) == [address_of(TO_ASK[0])]
    assert len(to_coordinator(sandbox)) == 1


def test_where_nobody_must_act_nobody_is_written_to(dag, sandbox):
    run = run_dag(dag, sandbox, patient_ids=IN_PROGRESS)
    assert run.state == "success"
    assert sandbox.mails == []
    assert task_states(run, "tell_coordinator") == ["skipped"]
