"""The operator for one patient requests once, and not again by accident; against the sandbox's API."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException
from helpers.operators import RefusingStore, Store
from helpers.support import context_of

from airflow_provider_healthex.client.transport import Transport
from airflow_provider_healthex.exceptions import (
    HealthExAuthenticationError,
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExNotFoundError,
    HealthExPatientActionNeeded,
    HealthExPermissionError,
    HealthExRateLimitError,
    HealthExRequestError,
    HealthExServerError,
    HealthExTokenError,
    HealthExUpdateAmbiguousError,
)
from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
from airflow_provider_healthex.operators.journal import Journal, StateStoreError
from airflow_provider_healthex.sandbox import patients

REASONS = {
    patients.CONSENT_EXPIRED: "CONSENT_EXPIRED",
    patients.CONSENT_NOT_FOUND: "CONSENT_NOT_FOUND",
    patients.CONSENT_REVOKED: "CONSENT_REVOKED",
    patients.UNLOCKED_OR_NO_TARGETED_LIST: "UNLOCKED_OR_NO_TARGETED_LIST",
    patients.AUTHENTICATION_EXPIRED: "AUTHENTICATION_EXPIRED",
    patients.AUTHENTICATION_NEEDED_NEW_FACILITY: "AUTHENTICATION_NEEDED_NEW_FACILITY",
    patients.NEW_REASON: patients.INVENTED_REASON,
}


def operator(patient_id=patients.IN_PROGRESS, **arguments):
    return HealthExUpdatePatientOperator(task_id="refresh", patient_id=patient_id, **arguments)


def intent(requested_at, project_id="project-demo"):
    """Return the record that a try killed during its request leaves in the store."""
    return {"series": [0, 0], "project_id": project_id, "open": {patients.IN_PROGRESS: requested_at}, "outcomes": {}}


def run(task, store=None, max_tries=0, clears=None):
    context = context_of(task)
    # As after so many clears of a task without retries.
    context["ti"].max_tries, context["ti"].try_number = max_tries, max_tries + 1
    context["dag_run"] = SimpleNamespace(clear_number=max_tries if clears is None else clears)
    if store is not None:
        context["task_state_store"] = store
    return task.execute(context)


def test_the_result_is_healthexs_answer(healthex_sandbox):
    before = datetime.now(timezone.utc)
    answer = run(operator())
    assert set(answer) == {
        "project_id",
        "patient_id",
        "organization_id",
        "message",
        "patient_action_needed_reason",
        "retrieval_id",
        "skipped_facilities_count",
        "counts",
        "requested_at",
    }
    assert answer["message"] == "IN_PROGRESS_NO_ACTION_NEEDED"
    assert answer["patient_id"] == patients.IN_PROGRESS
    assert abs(datetime.fromisoformat(answer["requested_at"]) - before) < timedelta(seconds=10)
    assert answer["requested_at"].endswith("+00:00")
    assert json.loads(json.dumps(answer)) == answer
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1


def test_a_partial_update_is_logged_as_a_warning(healthex_sandbox, task_log):
    assert run(operator(patients.PARTIAL))["skipped_facilities_count"] > 0
    assert "Partial update" in task_log()


@pytest.mark.parametrize(("patient", "reason"), REASONS.items())
class TestPatientAction:
    def test_fail_fails_the_task_without_a_retry_and_with_the_reason(self, healthex_sandbox, patient, reason):
        with pytest.raises(AirflowFailException, match=reason) as caught:
            run(operator(patient))
        assert isinstance(caught.value.__cause__, HealthExPatientActionNeeded)
        assert caught.value.__cause__.reason == reason
        assert caught.value.__cause__.patient_id == patient

    def test_skip_skips_the_task(self, healthex_sandbox, patient, reason):
        with pytest.raises(AirflowSkipException, match=reason):
            run(operator(patient, on_patient_action="skip"))

    def test_return_returns_the_answer(self, healthex_sandbox, patient, reason):
        answer = run(operator(patient, on_patient_action="return"))
        assert answer["message"] == "PATIENT_ACTION_NEEDED"
        assert answer["patient_action_needed_reason"] == reason


@pytest.mark.parametrize(
    ("patient", "error"),
    [
        (patients.UNKNOWN, HealthExNotFoundError),
        (patients.FORBIDDEN, HealthExPermissionError),
        (patients.PROJECT_PAUSED, HealthExRequestError),
    ],
)
def test_a_permanent_error_is_not_retried(healthex_sandbox, patient, error):
    with pytest.raises(AirflowFailException) as caught:
        run(operator(patient))
    assert type(caught.value.__cause__) is error


@pytest.mark.parametrize("patient", ["", "..", "two\nlines", "17d4\u200b", " 17d4", 694061, None, ["17d4"]])
def test_an_unusable_id_is_refused_when_the_dag_is_parsed_and_before_any_request(healthex_sandbox, patient):
    with pytest.raises(HealthExConfigurationError, match=r"^patient_id "):
        operator(patient)
    task = operator("{{ patient }}")
    task.patient_id = patient
    store = Store()
    with pytest.raises(AirflowFailException, match=r"^patient_id ") as caught:
        run(task, store)
    assert type(caught.value.__cause__) is HealthExConfigurationError
    assert store.values == {}


@pytest.mark.parametrize(
    "argument", [{"project_id": 694061}, {"project_id": "a "}, {"skip_interactive": "yes"}, {"durable": "yes"}]
)
def test_other_unusable_arguments_are_refused_when_the_dag_is_parsed(argument):
    with pytest.raises(HealthExConfigurationError, match=next(iter(argument))):
        operator(**argument)


def test_a_project_that_a_template_made_a_number_is_refused_by_name(healthex_sandbox):
    task = operator(project_id="{{ project }}")
    task.project_id = 694061
    with pytest.raises(AirflowFailException, match=r"^project_id must be text \(got int 694061\)"):
        run(task)


def test_an_unusable_mapped_id_is_not_retried(healthex_sandbox):
    with DAG("mapped_patients", schedule=None):
        mapped = HealthExUpdatePatientOperator.partial(task_id="refresh").expand(patient_id=["a "])
    with pytest.raises(AirflowFailException, match="SPACE"):
        run(mapped.unmap({"patient_id": "a "}))


def test_the_error_of_a_404_names_a_patient_never_added_as_a_cause(healthex_sandbox):
    with pytest.raises(AirflowFailException, match="never added"):
        run(operator(patients.UNKNOWN))


def test_an_expired_token_is_not_retried_and_nothing_is_sent(healthex_sandbox, monkeypatch):
    token = healthex_sandbox.token(expires_in=-120)
    connection = {"conn_type": "healthex", "host": healthex_sandbox.api_url, "password": token}
    monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", json.dumps(connection))
    with pytest.raises(AirflowFailException, match="expired") as caught:
        run(operator(project_id=healthex_sandbox.project_id))
    assert isinstance(caught.value.__cause__, HealthExTokenError)
    assert token not in str(caught.value)
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 0


def test_a_rejected_token_is_not_retried(healthex_sandbox):
    healthex_sandbox.faults.add("update", 401, times=2)
    with pytest.raises(AirflowFailException) as caught:
        run(operator())
    assert isinstance(caught.value.__cause__, HealthExAuthenticationError)


@pytest.mark.parametrize(("status", "error"), [(429, HealthExRateLimitError), (503, HealthExServerError)])
def test_a_rejection_with_retry_after_is_retryable(healthex_sandbox, status, error):
    healthex_sandbox.faults.add("update", status, retry_after=3600)
    with pytest.raises(error) as caught:
        run(operator())
    assert caught.value.retry_after == 3600
    assert healthex_sandbox.accepted(patients.IN_PROGRESS) == 0


def test_a_service_that_cannot_be_reached_is_retryable(healthex_sandbox, monkeypatch):
    connection = {"conn_type": "healthex", "host": "http://127.0.0.1:9", "password": "token"}
    monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", json.dumps(connection))
    monkeypatch.setattr("airflow_provider_healthex.client.retries.TRIES", 1)
    with pytest.raises(HealthExConnectionError, match=r"127\.0\.0\.1:9"):
        run(operator(project_id="project"))


@pytest.mark.parametrize("fault", ["cut", "cut_after", "garbage", 500, 502, 503, 504])
class TestAmbiguous:
    def test_fail_requests_once_and_is_not_retried(self, healthex_sandbox, fault):
        healthex_sandbox.faults.add("update", fault)
        with pytest.raises(AirflowFailException) as caught:
            run(operator())
        assert isinstance(caught.value.__cause__, HealthExUpdateAmbiguousError)
        assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1

    def test_retry_leaves_the_error_to_airflows_retry(self, healthex_sandbox, fault):
        healthex_sandbox.faults.add("update", fault)
        with pytest.raises(HealthExUpdateAmbiguousError):
            run(operator(on_ambiguous="retry"))
        assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1

    def test_assume_started_returns_an_ambiguous_update_in_progress(self, healthex_sandbox, fault):
        healthex_sandbox.faults.add("update", fault)
        answer = run(operator(on_ambiguous="assume_started"))
        assert answer["ambiguous"] is True
        assert answer["message"] == "IN_PROGRESS_NO_ACTION_NEEDED"
        assert answer["retrieval_id"] is None
        assert answer["organization_id"] == healthex_sandbox.org_id
        assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1


class TestDurable:
    def test_a_retry_returns_the_stored_answer(self, healthex_sandbox):
        store = Store()
        first = run(operator(), store)
        assert run(operator(), store) == first
        assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1

    def test_a_clear_requests_again(self, healthex_sandbox):
        store = Store()
        run(operator(), store, max_tries=0)
        run(operator(), store, max_tries=1)
        assert healthex_sandbox.asked(patients.IN_PROGRESS) == 2

    def test_a_retry_fails_by_a_stored_answer_that_needs_patient_action(self, healthex_sandbox):
        store = Store()
        for _ in range(2):
            with pytest.raises(AirflowFailException):
                run(operator(patients.CONSENT_EXPIRED), store)
        assert healthex_sandbox.asked(patients.CONSENT_EXPIRED) == 1

    @pytest.mark.parametrize("choice", ["fail", "assume_started"])
    def test_a_try_that_was_killed_during_its_request_is_not_repeated(self, healthex_sandbox, choice, monkeypatch):
        store = Store()
        task = operator(on_ambiguous=choice)
        killed_at = self.kill_during_the_request(task, store, monkeypatch)
        again = operator(on_ambiguous=choice)
        if choice == "fail":
            with pytest.raises(AirflowFailException, match="before an answer was stored"):
                run(again, store)
        else:
            answer = run(again, store)
            assert answer["ambiguous"] is True
            assert datetime.fromisoformat(answer["requested_at"]) <= killed_at
        assert healthex_sandbox.asked(patients.IN_PROGRESS) == 0

    def test_a_retried_ambiguous_update_keeps_its_requested_at(self, healthex_sandbox):
        store = Store()
        early = "2026-01-01T00:00:00+00:00"
        store.set("healthex_journal_0", intent(early))
        assert run(operator(on_ambiguous="retry"), store)["requested_at"] == early

    def test_an_ambiguous_update_whose_retry_is_rejected_stays_ambiguous(self, healthex_sandbox):
        store = Store()
        early = "2026-01-01T00:00:00+00:00"
        store.set("healthex_journal_0", intent(early))
        healthex_sandbox.faults.add("update", 429, retry_after=3600)
        with pytest.raises(HealthExRateLimitError):
            run(operator(on_ambiguous="retry"), store)
        assert Journal(store, project_id="project-demo").ambiguous_since(patients.IN_PROGRESS) == early

    def test_a_retry_requests_again_after_a_rejection(self, healthex_sandbox):
        store = Store()
        healthex_sandbox.faults.add("update", 429, retry_after=3600)
        with pytest.raises(HealthExRateLimitError):
            run(operator(), store)
        assert run(operator(), store)["message"] == "IN_PROGRESS_NO_ACTION_NEEDED"
        assert healthex_sandbox.accepted(patients.IN_PROGRESS) == 1

    def test_a_failure_before_the_request_stores_nothing(self, healthex_sandbox, monkeypatch):
        store = Store()
        task = operator()

        def secrets_backend_fails(*args):
            raise RuntimeError("the backend timed out")

        monkeypatch.setattr("airflow_provider_healthex.hooks.connection.DELAYS", ())
        monkeypatch.setattr("airflow_provider_healthex.hooks.connection.BaseHook.get_connection", secrets_backend_fails)
        with pytest.raises(HealthExConnectionError, match="look-up of connection"):
            run(task, store)
        assert store.values == {}

    def test_a_clear_that_looks_like_a_retry_is_explained(self, healthex_sandbox, monkeypatch, task_log):
        killed, answered = Store(), Store()
        self.kill_during_the_request(operator(), killed, monkeypatch)
        run(operator(), answered)
        task = operator()
        task.retries = 2
        with pytest.raises(AirflowFailException, match="Clear it once more, now that it is not running"):
            run(task, killed, clears=1)
        run(task, answered, clears=1)
        assert "Clear it once more, now that it is not running" in task_log()

    @pytest.mark.parametrize("writes", [1, 0])
    def test_a_refused_write_stops_an_unsent_request_alone(self, healthex_sandbox, writes, task_log):
        store = RefusingStore.after(writes)
        if writes:
            answer = run(operator(), store)
            assert answer["message"] == "IN_PROGRESS_NO_ACTION_NEEDED"
            log = task_log()
            assert log.index(answer["retrieval_id"]) < log.index("the API server answered 500")
        else:
            with pytest.raises(StateStoreError):
                run(operator(), store)
        assert healthex_sandbox.asked(patients.IN_PROGRESS) == writes

    def test_a_refused_write_hides_no_rejection(self, healthex_sandbox):
        with pytest.raises(AirflowFailException, match="404"):
            run(operator(patients.UNKNOWN), RefusingStore.after(1))
        healthex_sandbox.faults.add("update", "cut")
        with pytest.raises(AirflowFailException) as caught:
            run(operator(), RefusingStore.after(1))
        assert isinstance(caught.value.__cause__, HealthExUpdateAmbiguousError)

    def test_a_try_killed_while_it_waits_to_retry_a_rejection_was_not_requested(self, healthex_sandbox, monkeypatch):
        class Killed(BaseException):
            pass

        def die(*args, **kwargs):
            raise Killed

        store = Store()
        healthex_sandbox.faults.add("update", 429, retry_after=1)
        with monkeypatch.context() as patch:
            patch.setattr("airflow_provider_healthex.client.retries._wait", die)
            with pytest.raises(Killed):
                run(operator(), store)
        assert "ambiguous" not in run(operator(), store)
        assert healthex_sandbox.accepted(patients.IN_PROGRESS) == 1

    def test_a_stored_answer_for_another_patient_is_ignored(self, healthex_sandbox):
        store = Store()
        run(operator(patients.PARTIAL), store)
        assert run(operator(patients.IN_PROGRESS), store)["patient_id"] == patients.IN_PROGRESS
        assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1

    def test_a_retry_with_the_connections_project_as_argument_requests_nothing_again(self, healthex_sandbox):
        store = Store()
        first = run(operator(), store)
        assert run(operator(project_id=healthex_sandbox.project_id), store) == first
        assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1

    def test_an_ambiguous_update_is_returned_also_with_an_expired_token(self, healthex_sandbox, monkeypatch):
        store = Store()
        early = "2026-01-01T00:00:00+00:00"
        store.set("healthex_journal_0", intent(early, healthex_sandbox.project_id))
        token = healthex_sandbox.token(expires_in=-120)
        connection = {"conn_type": "healthex", "host": healthex_sandbox.api_url, "password": token}
        monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", json.dumps(connection))
        answer = run(operator(project_id=healthex_sandbox.project_id, on_ambiguous="assume_started"), store)
        assert (answer["requested_at"], answer["ambiguous"], answer["organization_id"]) == (early, True, None)

    @pytest.mark.parametrize("choice", ["fail", "assume_started"])
    def test_without_a_store_a_request_that_is_stopped_is_not_retried(self, healthex_sandbox, choice, monkeypatch):
        """By execution_timeout, or by Airflow 2.11 that ends the task; both retry what isn't final."""
        stop_updates(monkeypatch)
        with pytest.raises(AirflowFailException, match=r"by a signal.* Not retried: HealthEx may have accepted"):
            run(operator(on_ambiguous=choice))

    def test_without_a_store_retry_leaves_a_request_that_is_stopped_to_airflow(self, healthex_sandbox, monkeypatch):
        stop_updates(monkeypatch)
        with pytest.raises(Stopped):
            run(operator(on_ambiguous="retry"))

    def test_a_task_that_is_stopped_before_its_request_is_left_to_a_retry(self, healthex_sandbox, monkeypatch):
        monkeypatch.setattr("airflow_provider_healthex.client.api.HealthExClient.check_token", stopped)
        with pytest.raises(Stopped):
            run(operator())

    def test_without_durable_nothing_is_stored(self, healthex_sandbox):
        store = Store()
        run(operator(durable=False), store)
        assert store.values == {}

    def test_the_store_holds_no_token(self, healthex_sandbox):
        store = Store()
        run(operator(), store)
        assert "eyJ" not in "".join(store.values.values())

    @staticmethod
    def kill_during_the_request(task, store, monkeypatch):
        with monkeypatch.context() as patch:
            stop_updates(patch)
            with pytest.raises(Stopped):
                run(task, store)
        return datetime.now(timezone.utc)


class Stopped(BaseException):
    pass


def stopped(*args, **kwargs):
    raise Stopped("by a signal")


def stop_updates(monkeypatch):
    """Stop the task's process where it sends an update; a token is still requested."""
    send = Transport.send
    monkeypatch.setattr(Transport, "send", lambda self, call, token: (stopped if token else send)(self, call, token))


def test_after_on_kill_waits_end_at_once_and_nothing_is_sent(healthex_sandbox):
    healthex_sandbox.faults.add("update", 429, times=5, retry_after=60)
    task = operator()

    def kill_once_requested():
        while healthex_sandbox.asked(patients.IN_PROGRESS) == 0:
            time.sleep(0.01)
        task.on_kill()

    killer = threading.Thread(target=kill_once_requested, daemon=True)
    killer.start()
    began = time.monotonic()
    with pytest.raises(HealthExRateLimitError):
        run(task)
    assert time.monotonic() - began < 10
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1


@pytest.mark.parametrize("argument", [{"on_patient_action": "shrug"}, {"on_ambiguous": "hope"}])
def test_an_unknown_choice_is_refused_when_the_dag_is_parsed(argument):
    with pytest.raises(HealthExConfigurationError, match="must be one of"):
        operator(**argument)


def test_the_documented_fields_are_templated():
    assert HealthExUpdatePatientOperator.template_fields == (
        "patient_id",
        "project_id",
        "skip_interactive",
        "healthex_conn_id",
        "bucket_key",
        "bucket_name",
        "external_id",
        "org_id",
        "manifest_key",
        "aws_conn_id",
        "min_objects",
        "marker",
        "quiet_period",
        "clock_skew",
    )
