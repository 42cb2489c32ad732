"""Patients who must act, on an Airflow with its own processes: they follow the mailed link, and a person answers."""

from __future__ import annotations

import pytest
from helpers.outreach import address_of, follow, links
from helpers.running import HAS_APPROVAL, HAS_WATCHERS, wait_for

from airflow_provider_healthex.sandbox import patients

pytestmark = pytest.mark.timeout(240)

needs_approval = pytest.mark.skipif(not HAS_APPROVAL, reason="below Airflow 3.1 nobody can be asked")


@pytest.fixture(scope="module")
def acted(real_airflow, begun):
    """The patients who were mailed a link follow it, and their data is on its way."""
    sandbox = real_airflow.sandbox
    asked = [patients.AUTHENTICATION_EXPIRED, patients.CONSENT_NOT_FOUND]
    asked += [patients.CONSENT_EXPIRED] if HAS_APPROVAL else []
    everybody = set(map(address_of, asked))
    wait_for("they all have a mail", lambda: links(sandbox).keys() == everybody)
    for link in links(sandbox).values():
        follow(link)


def assert_it_arrived_by_the_one_request(real_airflow, run_id, patient):
    assert real_airflow.wait(run_id) == "success"
    assert real_airflow.result(run_id, "arrival")["patient_id"] == patient
    assert real_airflow.result(run_id, "arrival")["since"] == real_airflow.result(run_id, "refresh")["requested_at"]
    assert real_airflow.sandbox.asked(patient) == 1


def test_the_data_of_a_patient_who_follows_the_link_arrives(real_airflow, acted):
    assert_it_arrived_by_the_one_request(real_airflow, "reconsent_patient", patients.AUTHENTICATION_EXPIRED)
    assert real_airflow.states("reconsent_patient")["ask_to_consent"] == "skipped"


def test_who_of_a_cohort_follows_the_link_is_announced_as_delivered(real_airflow, acted):
    assert real_airflow.wait("reconsent_cohort") == "success"
    assert real_airflow.result("reconsent_cohort", "report") == {"arrived": 1, "missing": 0}
    if HAS_WATCHERS:
        wait_for("it is worked on", lambda: real_airflow.processed()[patients.CONSENT_NOT_FOUND])
    assert real_airflow.sandbox.asked(patients.CONSENT_NOT_FOUND) == 1


def answer(real_airflow, run_id, option):
    """Answer the question of a run of the approval's DAG, as whoever may in Airflow's UI; return the question."""
    path = f"dags/reconsent_with_approval/dagRuns/{run_id}/taskInstances/confirm/-1/hitlDetails"
    wait_for("the question is asked", lambda: real_airflow.query(QUESTIONS, run_id))
    question = real_airflow.api("GET", path).json()
    assert real_airflow.states(run_id)["arrival"] is None
    body = {"chosen_options": [option], "params_input": {}}
    wait_for("the answer is taken", lambda: real_airflow.api("PATCH", path, **body).status_code in (200, 409))
    return question


@needs_approval
def test_a_person_confirms_that_the_patient_has_acted_and_the_data_is_waited_for(real_airflow, acted):
    question = answer(real_airflow, "confirmed", "The patient has acted")
    assert question["options"] == ["The patient has acted", "Give up"]
    assert question["defaults"] == ["Give up"]
    assert not question["params"]
    for told in ("CONSENT", "consent-expired", "patients.example", "/link/"):
        assert told not in question["subject"] + question["body"]
    assert_it_arrived_by_the_one_request(real_airflow, "confirmed", patients.CONSENT_EXPIRED)
    assert real_airflow.states("confirmed")["give_up"] == "skipped"


@needs_approval
def test_a_person_gives_up_and_the_run_ends_without_data(real_airflow, begun):
    answer(real_airflow, "given_up", "Give up")
    assert real_airflow.wait("given_up") == "success"
    ended = real_airflow.states("given_up")
    assert (ended["give_up"], ended["arrival"], ended["read"]) == ("success", "skipped", "skipped")


@needs_approval
def test_without_an_answer_in_time_it_gives_up(real_airflow, begun):
    assert real_airflow.wait("impatient") == "success"
    ended = real_airflow.states("impatient")
    assert (ended["give_up"], ended["arrival"], ended["read"]) == ("success", "skipped", "skipped")
    assert address_of(patients.NEW_REASON) not in links(real_airflow.sandbox)


QUESTIONS = "select 1 from hitl_detail join task_instance on ti_id = id where run_id = ? and state != 'running'"
