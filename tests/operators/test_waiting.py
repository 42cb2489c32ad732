"""The operator that also waits: the sensor's wait, and no second request; against the sandbox's API and S3."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
)
from helpers.operators import Store
from helpers.support import AIRFLOW, context_of, load_dags, run_dag, run_sensor, task_states, xcom

from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError
from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
from airflow_provider_healthex.sandbox import patients

MODES = {"poke": {}, "deferred": {"deferrable": True}}


@pytest.fixture
def operator(healthex_sandbox):
    def make(patient_id=patients.IN_PROGRESS, **arguments):
        arguments = {"bucket_name": healthex_sandbox.bucket, "quiet_period": 1, "timeout": 30, **arguments}
        return HealthExUpdatePatientOperator(
            **{
                "task_id": "refresh",
                "patient_id": patient_id,
                "wait_for_arrival": True,
                "bucket_key": "d/{projectId}/{healthexPatientId}/",
                "poke_interval": 0.2,
                **arguments,
            }
        )

    return make


def context_with(store, task):
    context = context_of(task)
    if store is not None:
        context["task_state_store"] = store
    return context


@pytest.mark.parametrize("mode", MODES)
def test_its_result_is_the_sensors_and_the_answer_is_beside_it(healthex_sandbox, operator, mode):
    task = operator(quiet_period=4, **MODES[mode])  # so that the first poke comes too early, however slow
    context = context_of(task)
    run = run_sensor(task, context=context)
    answer = context["ti"].pushed["update"]
    assert run.deferrals == (mode == "deferred")
    assert answer["message"] == "IN_PROGRESS_NO_ACTION_NEEDED"
    assert run.result["since"] == answer["requested_at"]
    assert run.result["keys"] == [file.path for file in healthex_sandbox.files(patients.IN_PROGRESS)]
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_retry_goes_on_waiting_for_the_same_request(healthex_sandbox, operator, mode):
    store = Store()
    impatient = operator(timeout=0, quiet_period=60, **MODES[mode])
    context = context_with(store, impatient)
    with pytest.raises(AirflowSensorTimeout):
        run_sensor(impatient, context=context)
    first = context["ti"].pushed["update"]

    task = operator(**MODES[mode])
    context = context_with(store, task)
    assert run_sensor(task, context=context).result["since"] == first["requested_at"]
    assert context["ti"].pushed["update"] == first
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1


def break_the_wait(monkeypatch):
    def broken(*arguments):
        raise AirflowTaskTimeout("Timeout")

    monkeypatch.setattr("airflow_provider_healthex.sensors.base.ArrivalSensor.poke", broken)


def test_with_a_state_store_an_error_of_the_wait_is_left_to_a_retry(operator, monkeypatch):
    break_the_wait(monkeypatch)
    task = operator()
    with pytest.raises(AirflowTaskTimeout):
        task.execute(context_with(Store(), task))


@pytest.mark.parametrize(("durable", "store"), [(True, None), (False, Store())])
def test_where_a_retry_would_request_again_an_error_of_the_wait_is_final(operator, monkeypatch, durable, store):
    break_the_wait(monkeypatch)
    task = operator(durable=durable)
    with pytest.raises(AirflowFailException, match="Not retried: HealthEx has accepted the update") as failure:
        task.execute(context_with(store, task))
    assert isinstance(failure.value.__cause__, AirflowTaskTimeout)


def test_a_permanent_error_of_the_wait_has_its_type_as_cause(operator):
    task = operator(bucket_name="no-such-bucket")
    with pytest.raises(AirflowFailException, match="NoSuchBucket") as failure:
        task.execute(context_of(task))
    assert isinstance(failure.value.__cause__, HealthExConfigurationError)


def test_a_resumed_task_whose_answer_is_gone_says_so(operator):
    task = operator(deferrable=True)
    context = context_with(Store(), task)
    with pytest.raises(HealthExError, match="XCom 'update' is missing"):
        task.resume_execution("execute_complete", {"event": {}}, context)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"bucket_key": None}, "^wait_for_arrival=True needs bucket_key"),
        ({"bucket_key": "d/{externalId}/"}, "externalId"),
        ({"bucket_key": "d/{healthexPatientId}/", "manifest_key": "d/{healthexPatientId}/m"}, "manifest_key"),
        ({"quiet_period": -1}, "quiet_period"),
        ({"timeout": -1}, "timeout"),
        ({"deferrable": "yes"}, "deferrable"),
    ],
)
def test_an_unusable_argument_of_the_wait_is_refused_when_the_dag_is_parsed(operator, argument, message):
    with pytest.raises(HealthExConfigurationError, match=message):
        operator(**argument)


def test_what_a_template_made_unusable_is_refused_before_any_request(healthex_sandbox, operator):
    task = operator(quiet_period="{{ params.quiet_period }}")
    task.quiet_period = "soon"
    with pytest.raises(AirflowFailException, match="quiet_period"):
        task.execute(context_of(task))
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 0


class TestPatientAction:
    def test_fail_fails_without_a_wait(self, operator):
        task = operator(patients.CONSENT_EXPIRED)
        with pytest.raises(AirflowFailException, match="CONSENT_EXPIRED"):
            task.execute(context_of(task))

    def test_skip_skips_without_a_wait(self, operator):
        task = operator(patients.CONSENT_EXPIRED, on_patient_action="skip")
        with pytest.raises(AirflowSkipException):
            task.execute(context_of(task))

    def test_return_returns_the_answer_without_a_wait(self, operator):
        task = operator(patients.CONSENT_EXPIRED, on_patient_action="return")
        assert task.execute(context_of(task))["message"] == "PATIENT_ACTION_NEEDED"


def test_an_ambiguous_update_that_is_assumed_to_have_started_is_waited_for(healthex_sandbox, operator):
    healthex_sandbox.faults.add("update", "cut_after")
    task = operator(on_ambiguous="assume_started")
    assert task.execute(context_of(task))["object_count"] == 1
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1


@pytest.mark.usefixtures("airflow_database")
class TestOnAirflow:
    def test_one_task_requests_and_waits_in_every_mode(self, healthex_sandbox):
        dags = load_dags("dags/waiting_operator.py")
        run = run_dag(dags.one_task_waits, healthex_sandbox)
        assert run.state == "success"
        for patient_id in (patients.IN_PROGRESS, patients.PARTIAL):
            assert xcom(run, patient_id)["patient_id"] == patient_id
            assert xcom(run, patient_id)["since"] == xcom(run, patient_id, key="update")["requested_at"]
            assert healthex_sandbox.asked(patient_id) == 1

    def test_it_can_be_mapped_over_patients(self, healthex_sandbox):
        dags = load_dags("dags/waiting_operator.py")
        run = run_dag(dags.one_task_waits_for_each, healthex_sandbox)
        assert task_states(run, "refresh") == ["success", "skipped", "failed"]
        assert xcom(run, "refresh", 0)["object_count"] == 1

    def test_a_retry_waits_on_with_a_state_store_and_airflow_does_not_retry_without(self, healthex_sandbox):
        dags = load_dags("dags/waiting_operator.py")
        run = run_dag(dags.one_task_waits_again, healthex_sandbox)
        assert run.state == ("success" if AIRFLOW >= (3, 3) else "failed")
        assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1
