"""The example with a question to a person; the end-to-end tests answer it."""

from __future__ import annotations

import pytest
from airflow import __version__ as airflow_version
from helpers.outreach import address_of, links
from helpers.support import load_dags, run_dag, xcom

from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.sandbox import patients

HAS_APPROVAL = tuple(int(part) for part in airflow_version.split(".")[:2]) >= (3, 1)
needs_approval = pytest.mark.skipif(not HAS_APPROVAL, reason="Airflow below 3.1 has no questions to people")


@pytest.fixture
def example(monkeypatch):
    for name in ("POKE_INTERVAL", "QUIET_PERIOD"):
        monkeypatch.setenv(f"HEALTHEX_EXAMPLE_{name}", "0.5")
    return load_dags("example_dags/reconsent_with_approval.py")


@pytest.mark.skipif(HAS_APPROVAL, reason="Airflow has questions to people")
def test_below_airflow_3_1_the_file_has_no_dag(example):
    assert not hasattr(example, "reconsent_with_approval")


@needs_approval
def test_the_question_has_nothing_of_the_patient_and_no_answer_means_give_up(example):
    question = example.reconsent_with_approval().get_task("confirm")
    assert "{{" not in question.subject + question.body
    assert question.serialized_params == {}
    assert question.defaults == ["Give up"]
    assert question.response_timeout.days == 14


@needs_approval
@pytest.mark.usefixtures("airflow_database")
def test_a_patient_in_progress_is_waited_for_without_a_question(example, healthex_sandbox):
    run = run_dag(example.reconsent_with_approval(), healthex_sandbox, patient_id=patients.IN_PROGRESS)
    assert run.state == "success"
    states = {ti.task_id: ti.state for ti in run.get_task_instances()}
    assert [states[each] for each in ("outreach", "confirm", "give_up")] == ["skipped"] * 3
    assert xcom(run, "read") == 1
    assert healthex_sandbox.mails == []


@needs_approval
@pytest.mark.parametrize("patient", [each for each, scenario in patients.SCENARIOS.items() if scenario.reason])
def test_for_each_reason_the_patient_or_the_coordinator_is_mailed(example, healthex_sandbox, patient):
    params = {name: param.value for name, param in example.reconsent_with_approval().params.items()}
    params |= {"patient_id": patient, "external_id": patients.external_id_of(patient)}
    update = HealthExHook().update_patient_data(patient).to_dict()
    assert example.reconsent_with_approval().get_task("next_step").python_callable(update) == "outreach"

    example.reconsent_with_approval().get_task("outreach").python_callable(update, params, "run-1")

    (mail,) = healthex_sandbox.mails
    if update["patient_action_needed_reason"] in example.LINK_HELPS:
        assert links(healthex_sandbox).keys() == {address_of(patient)}
        return
    assert mail.recipient == "coordinator@study.example"
    assert patient in mail.text
    assert patients.external_id_of(patient) not in mail.text
    assert links(healthex_sandbox) == {}
