"""The cohort operator: the outcome of each patient, also when the task fails, and no patient requested twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException, AirflowTaskTimeout
from helpers import operators
from helpers.loopback import STARTED, Reply, Service, closes, make_jwt, says, status
from helpers.operators import PROJECT, RefusingStore, Store, TaskInstance, cohort, connection, run

from airflow_provider_healthex.client import rate_limit, retries
from airflow_provider_healthex.exceptions import (
    HealthExAuthenticationError,
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExError,
    HealthExTokenError,
)
from airflow_provider_healthex.operators.healthex import (
    HealthExListConsentedPatientsOperator,
    HealthExUpdateCohortOperator,
)
from airflow_provider_healthex.operators.journal import StateStoreError
from airflow_provider_healthex.sandbox import patients

CHOICES = ("assume_started", "fail", "retry")
NEEDS_PATIENT = says({"message": "PATIENT_ACTION_NEEDED", "patientActionNeededReason": "CONSENT_EXPIRED"})


@pytest.fixture
def service(monkeypatch):
    """A scripted HealthEx with as many patients as wanted, and the connection to it."""
    from tenacity import wait_none

    monkeypatch.setattr(retries, "BACKOFF", wait_none())
    monkeypatch.setattr(rate_limit, "_rate_limits", {})
    running = Service()
    running.token = make_jwt()
    monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", connection(running.url, running.token))
    yield running
    running.close()


def ids(count):
    return [f"patient-{number:04}" for number in range(count)]


def accepts_after(seconds):
    return Reply(**{**vars(says(STARTED)), "after": seconds})


def replies(**by_patient):
    return lambda request: by_patient.get(request.patient_id.replace("-", "_"))


def patient_ids_by_outcome(result):
    kinds = ("in_progress", "patient_action_needed", "failed")
    found = {kind: [entry["patient_id"] for entry in result[kind]] for kind in kinds}
    return {**found, "not_asked": result.get("not_asked", [])}


def failing(task, store=None, error=AirflowFailException, match=None):
    """Run a task that must fail, and return the error and what was pushed before."""
    ti = TaskInstance(task)
    with pytest.raises(error, match=match) as caught:
        run(task, store, ti=ti)
    return caught.value, ti.pushed.get("return_value")


class Killed(BaseException):
    """Ends the process: nothing handles it."""


# Against the sandbox


MIXED = [
    patients.IN_PROGRESS,
    patients.UNKNOWN,
    {"patient_id": patients.SEVERAL_FILES, "external_id": "ext-1"},
    patients.CONSENT_EXPIRED,
    patients.IN_PROGRESS,
    patients.PARTIAL,
]


def mixed(healthex_sandbox, **arguments):
    healthex_sandbox.faults.add("update", "cut_after", patient_id=patients.PARTIAL)
    return cohort(MIXED, **arguments)


def check_mixed(result, sandbox):
    assert [entry["patient_id"] for entry in result["in_progress"]] == [
        patients.IN_PROGRESS,
        patients.SEVERAL_FILES,
        patients.PARTIAL,
    ]
    assert result["in_progress"][1]["external_id"] == "ext-1"
    assert [entry.get("ambiguous") for entry in result["in_progress"]] == [None, None, True]
    assert result["patient_action_needed"] == [{"patient_id": patients.CONSENT_EXPIRED, "reason": "CONSENT_EXPIRED"}]
    assert result["failed"] == [{"patient_id": patients.UNKNOWN, "status_code": 404, "error": "HealthExNotFoundError"}]
    for patient_id in (patients.IN_PROGRESS, patients.UNKNOWN, patients.SEVERAL_FILES, patients.PARTIAL):
        assert sandbox.asked(patient_id) == 1


def test_the_result_lists_the_outcome_of_each_patient(healthex_sandbox):
    before = datetime.now(timezone.utc)
    result = run(mixed(healthex_sandbox, max_failures=1))
    check_mixed(result, healthex_sandbox)
    assert set(result) == {
        "project_id",
        "organization_id",
        "requested_at",
        "in_progress",
        "patient_action_needed",
        "failed",
    }
    assert result["project_id"] == healthex_sandbox.project_id
    assert result["organization_id"] == healthex_sandbox.org_id
    assert result["requested_at"] == min(entry["requested_at"] for entry in result["in_progress"])
    for entry in result["in_progress"]:
        assert abs((datetime.fromisoformat(entry["requested_at"]) - before).total_seconds()) < 60
        assert entry["requested_at"].endswith("+00:00")
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("store", [None, Store])
def test_the_result_of_a_mixed_cohort_is_pushed_also_when_it_fails(healthex_sandbox, store):
    error, result = failing(mixed(healthex_sandbox, max_failures=0), store and store())
    check_mixed(result, healthex_sandbox)
    assert "1 of 5 patients failed, more than max_failures=0 allows (0)" in str(error)
    assert "1 HealthExNotFoundError; 'patient-unknown'" in str(error)


def test_a_retry_requests_no_patient_whose_outcome_is_final(healthex_sandbox):
    store, task = Store(), mixed(healthex_sandbox, max_failures=0)
    _, first = failing(task, store)
    _, again = failing(cohort(MIXED, max_failures=0), store)
    assert again == first
    check_mixed(again, healthex_sandbox)


def test_progress_and_partial_updates_are_logged(healthex_sandbox, task_log):
    run(cohort([patients.IN_PROGRESS, patients.PARTIAL, patients.CONSENT_EXPIRED]))
    log = task_log()
    assert "3 of 3 requested: 2 in progress, 1 needs patient action, 0 failed" in log
    assert "Partial updates: 1" in log


def test_a_403_fails_the_task(healthex_sandbox):
    error, result = failing(cohort([patients.IN_PROGRESS, patients.FORBIDDEN], max_failures=2))
    assert "403" in str(error)
    assert patient_ids_by_outcome(result)["in_progress"] == [patients.IN_PROGRESS]


# How many may fail


@pytest.mark.parametrize(
    ("max_failures", "failures", "fails"),
    [(0, 0, False), (0, 1, True), (2, 2, False), (2, 3, True), (0.1, 2, False), (0.1, 3, True), (0.0, 1, True)],
)
def test_more_failures_than_allowed_fail_the_task(service, max_failures, failures, fails):
    service.answers_each(lambda request: status(404) if request.patient_id in ids(failures) else None)
    task = cohort(ids(20), max_failures=max_failures)
    if fails:
        _, result = failing(task, match=f"{failures} of 20 patients failed")
    else:
        result = run(task)
    assert patient_ids_by_outcome(result)["failed"] == ids(failures)
    assert len(result["in_progress"]) == 20 - failures


@pytest.mark.parametrize(
    ("fraction", "patients", "allowed"), [(0.05, 5, 1), (0.05, 20, 1), (0.29, 100, 29), (0.0, 5, 0), (1e-9, 5, 1)]
)
def test_a_fraction_of_the_patients_is_rounded_up(service, fraction, patients, allowed):
    service.answers_each(lambda request: status(404) if request.patient_id in ids(allowed) else None)
    assert len(run(cohort(ids(patients), max_failures=fraction))["failed"]) == allowed
    service.answers_each(lambda request: status(404) if request.patient_id in ids(allowed + 1) else None)
    failing(cohort(ids(patients), max_failures=fraction), match=rf"max_failures={fraction} allows \({allowed}\)")


@pytest.mark.parametrize("value", [1.0, -1, -0.1, True, False, "5", None, float("nan"), float("inf")])
def test_an_unusable_max_failures_is_refused_when_the_dag_is_parsed(value):
    with pytest.raises(HealthExConfigurationError, match="max_failures"):
        cohort(["a"], max_failures=value)


@pytest.mark.parametrize("argument", [{"on_ambiguous": "hope"}, {"max_concurrency": 0}, {"max_concurrency": 100}])
def test_other_arguments_are_checked_when_the_dag_is_parsed(argument):
    with pytest.raises(HealthExConfigurationError):
        cohort(["a"], **argument)


def test_a_patient_who_needs_to_act_is_no_failure(service):
    service.answers_each(replies(patient_0001=NEEDS_PATIENT))
    assert patient_ids_by_outcome(run(cohort(ids(3), max_failures=0)))["patient_action_needed"] == ["patient-0001"]


@pytest.mark.parametrize("reply", [status(404), NEEDS_PATIENT])
def test_a_cohort_without_an_accepted_update_fails(service, reply):
    service.answers(reply)
    _, result = failing(cohort(ids(3), max_failures=10), match="accepted no update at all")
    assert result["in_progress"] == []
    assert result["requested_at"] is None


# Arguments


UNUSABLE = [
    ("patient-1", "must be a list of ids .got str"),
    ("['a', 'b']", "must be a list of ids .got str"),
    ({"patient_id": "a"}, "must be a list of ids .got dict"),
    (None, "must be a list of ids .got None"),
    (["a", ""], r"patient_ids\[1\] must not be empty"),
    (["a", 7], r"patient_ids\[1\] must be text .got int 7"),
    (["a", None], r"patient_ids\[1\] must be text .got None"),
    (["a", ["b"]], r"patient_ids\[1\] must be text .got list"),
    (["a", {"id": "b"}], r"patient_ids\[1\] must have the key 'patient_id'"),
    (["a", {"patient_id": "b", "externalId": "c"}], r"patient_ids\[1\]"),
    (["a", "b", "c", "\ufeffd"], r"patient_ids\[3\] must not have a ZERO WIDTH NO-BREAK SPACE .* .got '\\ufeffd'"),
    (["a", {"patient_id": "b\xa0"}], r"patient_ids\[1\]\['patient_id'\] must not have a NO-BREAK SPACE"),
    ([{"patient_id": "a", "external_id": "b"}, {"patient_id": "a", "external_id": "c"}], "the same external id"),
]


@pytest.mark.parametrize(("patient_ids", "words"), UNUSABLE)
def test_unusable_ids_are_refused_when_the_dag_is_parsed(patient_ids, words):
    with pytest.raises(HealthExConfigurationError, match=words):
        cohort(patient_ids)


@pytest.mark.parametrize(("patient_ids", "words"), UNUSABLE)
def test_unusable_ids_fail_the_task_before_any_request(service, patient_ids, words):
    task = cohort("{{ ids }}")
    task.patient_ids = patient_ids
    error, _ = failing(task, match=words)
    assert isinstance(error.__cause__, HealthExConfigurationError)
    assert service.received == []


@pytest.mark.parametrize("external_id", ["mrn-12345 ", "\u200bmrn-12345", "'mrn-12345'", "mrn-12345/6", 12345])
def test_an_unusable_external_id_is_not_shown(external_id):
    with pytest.raises(HealthExConfigurationError) as error:
        cohort(["a", {"patient_id": "b", "external_id": external_id}])
    assert str(error.value).startswith("patient_ids[1]['external_id'] ")
    assert "12345" not in str(error.value)
    assert error.value.__context__ is None


@pytest.mark.parametrize("argument", [{"project_id": 694061}, {"project_id": "694061\xa0"}, {"project_id": "a/b"}])
def test_an_unusable_project_is_refused_before_any_request(service, argument):
    with pytest.raises(HealthExConfigurationError, match="project_id"):
        cohort(["a"], **argument)
    task = cohort(["a"], project_id="{{ project }}")
    task.project_id = argument["project_id"]
    failing(task, match="project_id")
    assert service.received == []


def test_templates_and_outputs_are_not_checked_when_the_dag_is_parsed():
    make = HealthExUpdateCohortOperator
    with DAG("parsed", schedule=None):
        output = HealthExListConsentedPatientsOperator(task_id="listed").output
        make(task_id="a", patient_ids="{{ ids }}", project_id="{{ project }}", skip_interactive="{{ skip }}")
        make(task_id="b", patient_ids=output, project_id=output, skip_interactive=output, healthex_conn_id=output)
        make(task_id="c", patient_ids=["a", "{{ b }}", output, {"patient_id": "{{ c }}", "external_id": output}])
        with pytest.raises(HealthExConfigurationError, match=r"patient_ids\[2\] "):
            make(task_id="d", patient_ids=["{{ a }}", output, "b "])


@pytest.mark.parametrize("argument", [{"patient_ids": ["a "]}, {"skip_interactive": "yes"}, {"project_id": 7}])
def test_an_unusable_mapped_value_is_not_retried(service, argument):
    with DAG("mapped", schedule=None):
        rest = {} if "patient_ids" in argument else {"patient_ids": ["a"]}
        mapped = HealthExUpdateCohortOperator.partial(task_id="mapped", **rest).expand(
            **{name: [value] for name, value in argument.items()}
        )
    failing(mapped.unmap(argument), match=next(iter(argument)))
    assert service.received == []


@pytest.mark.parametrize(("text", "sent"), [("true", True), ("False", False), ("None", None), ("", None)])
def test_skip_interactive_may_come_from_a_template(service, text, sent):
    task = cohort(["a"], skip_interactive="{{ skip }}")
    task.skip_interactive = text
    run(task)
    assert service.received[0].json == ({} if sent is None else {"skipInteractive": sent})


@pytest.mark.parametrize("argument", [{"skip_interactive": "yes"}, {"skip_interactive": 1}, {"durable": "false"}])
def test_a_flag_that_is_no_boolean_is_refused_when_the_dag_is_parsed(argument):
    with pytest.raises(HealthExConfigurationError, match=f"{next(iter(argument))} must be True"):
        cohort(["a"], **argument)


def test_an_empty_cohort_is_skipped(service):
    with pytest.raises(AirflowSkipException, match="empty"):
        run(cohort([]))


def test_an_external_id_is_kept_when_another_entry_of_the_patient_lacks_it(service):
    result = run(cohort(["a", {"patient_id": "a", "external_id": "x"}, {"patient_id": "a"}, {"patient_id": "b"}]))
    assert [entry.get("external_id") for entry in result["in_progress"]] == ["x", None]
    assert service.asked() == {"a": 1, "b": 1}


def test_the_documented_fields_are_templated():
    assert HealthExUpdateCohortOperator.template_fields == (
        "patient_ids",
        "project_id",
        "skip_interactive",
        "healthex_conn_id",
    )


def test_the_operator_can_be_mapped_over_chunks():
    HealthExUpdateCohortOperator.partial(task_id="mapped").expand(patient_ids=[["a"], ["b"]])


# Ambiguous updates


@pytest.mark.parametrize("choice", CHOICES)
def test_on_ambiguous_decides_whether_an_ambiguous_update_is_in_progress_or_failed(service, choice):
    service.answers_each(replies(patient_0001=closes()))
    result = run(cohort(ids(3), on_ambiguous=choice, max_failures=1))
    if choice == "assume_started":
        assert result["in_progress"][1]["ambiguous"] is True
        assert result["in_progress"][1]["requested_at"]
        assert result["failed"] == []
    else:
        assert result["failed"] == [
            {"patient_id": "patient-0001", "status_code": None, "error": "HealthExUpdateAmbiguousError"}
        ]


@pytest.mark.parametrize(("choice", "requested"), [("fail", 1), ("retry", 2)])
def test_a_retry_requests_an_ambiguous_patient_only_with_on_ambiguous_retry(service, choice, requested):
    store = Store()
    service.answers_each(replies(patient_0001=closes()))
    failing(
        cohort(ids(3), on_ambiguous=choice, max_failures=0),
        store,
        error=HealthExError if choice == "retry" else AirflowFailException,
    )
    service.answers_each(lambda request: None)
    task = cohort(ids(3), on_ambiguous=choice, max_failures=0)
    if choice == "retry":
        assert "ambiguous" not in run(task, store)["in_progress"][1]
    else:
        failing(task, store)
    assert service.asked() == {"patient-0000": 1, "patient-0001": requested, "patient-0002": 1}


def test_an_ambiguous_update_that_is_retried_keeps_its_requested_at_and_stays_ambiguous_if_rejected(service):
    store = Store()
    early = "2026-01-01T00:00:00+00:00"
    record = {
        "series": [0, 0],
        "project_id": PROJECT,
        "open": {"patient-0000": early, "patient-0001": early},
        "outcomes": {},
    }
    store.set("healthex_journal_0", record)
    service.answers_each(replies(patient_0001=status(404)))
    result = run(cohort(ids(3), on_ambiguous="retry", max_failures=1), store)
    assert result["in_progress"][0] == {"patient_id": "patient-0000", "requested_at": early}
    assert result["failed"] == [
        {"patient_id": "patient-0001", "status_code": 404, "error": "HealthExUpdateAmbiguousError"}
    ]


# Retries


def test_with_a_store_a_retry_requests_the_patients_whose_error_may_be_transient(service):
    store = Store()
    service.answers_each(replies(patient_0001=status(429), patient_0002=status(404), patient_0003=closes()))
    error, _ = failing(cohort(ids(6), max_failures=0), store, error=HealthExError)
    assert not isinstance(error, AirflowFailException)
    service.answers_each(lambda request: None)
    result = run(cohort(ids(6), max_failures=1), store)
    assert patient_ids_by_outcome(result)["failed"] == ["patient-0002"]
    assert service.asked() == {**dict.fromkeys(ids(6), 1), "patient-0001": 6}


def test_without_a_store_a_failure_is_final_once_anything_was_accepted(service):
    service.answers_each(replies(patient_0001=status(429)))
    failing(cohort(ids(3), max_failures=0), match="Not retried")
    failing(cohort(ids(3), max_failures=0, durable=False), Store(), match="Not retried")


def test_without_a_store_a_failure_is_retryable_while_nothing_was_accepted(service):
    service.answers(status(429))
    error, _ = failing(cohort(ids(3)), error=HealthExError)
    assert not isinstance(error, AirflowFailException)


class Terminated(BaseException):
    """As Airflow 2.11 ends a task that it was told to."""


@pytest.mark.parametrize("accident", [RuntimeError("a bug"), AirflowTaskTimeout("too long"), Terminated("SIGTERM")])
@pytest.mark.parametrize("durable", [True, False])
def test_an_unexpected_error_pushes_the_result_and_requests_no_patient_twice(service, monkeypatch, accident, durable):
    store = Store() if durable else None
    task = cohort(ids(40), max_concurrency=2)
    break_at(task, 10, accident, monkeypatch)
    _, result = failing(task, store, error=type(accident) if durable else AirflowFailException)
    found = patient_ids_by_outcome(result)
    requested = service.asked()
    # A patient in flight may have been accepted.
    assert set(requested) <= set(found["in_progress"])
    assert not set(requested) & set(found["not_asked"])
    assert found["not_asked"]
    if durable:
        again = run(cohort(ids(40)), store)
        assert len(again["in_progress"]) == 40
        assert set(service.asked().values()) == {1}


def test_ctrl_c_stays_what_it_is(service, monkeypatch):
    task = cohort(ids(40), max_concurrency=2)
    break_at(task, 10, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(task)


def break_at(task, count, error, monkeypatch):
    """Raise an error in the task's own code after so many outcomes."""
    original, seen = task.hook.update_patients_data, []

    def breaking(*args, **kwargs):
        updates = original(*args, **kwargs)
        try:
            for came in updates:
                seen.append(came)
                if len(seen) == count:
                    raise error
                yield came
        finally:
            updates.close()

    monkeypatch.setattr(task.hook, "update_patients_data", breaking)


def test_a_connection_that_cannot_be_read_right_now_is_retryable(service, monkeypatch):
    def secrets_backend_fails(*args):
        raise RuntimeError("the backend timed out")

    monkeypatch.setattr("airflow_provider_healthex.hooks.connection.DELAYS", ())
    monkeypatch.setattr("airflow_provider_healthex.hooks.connection.BaseHook.get_connection", secrets_backend_fails)
    failing(cohort(["a"]), error=HealthExConnectionError)
    assert service.received == []


def test_a_401_fails_the_task_and_with_a_store_a_retry_with_a_valid_token_continues(service):
    store = Store()
    service.answers_each(lambda request: status(401) if request.patient_id >= "patient-0050" else None)
    error, result = failing(cohort(ids(200), max_concurrency=4, max_failures=100), store, error=HealthExError)
    assert isinstance(error.__cause__, HealthExAuthenticationError)
    assert len(result["in_progress"]) == 50
    assert len(result["not_asked"]) > 130
    service.answers_each(lambda request: None)
    assert len(run(cohort(ids(200)), store)["in_progress"]) == 200
    assert {service.asked()[each] for each in ids(50)} == {1}


def test_a_401_for_every_patient_is_not_retried(service):
    service.answers(status(401))
    for store in (None, Store()):
        error, result = failing(cohort(ids(20), max_concurrency=2), store)
        assert isinstance(error.__cause__, HealthExAuthenticationError)
        assert result["in_progress"] == []


def test_an_expired_token_is_not_retried_and_nothing_is_sent(service, monkeypatch):
    token = make_jwt(-300)
    monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", connection(service.url, token))
    error, result = failing(cohort(ids(3)), match="expired")
    assert isinstance(error.__cause__, HealthExTokenError)
    assert result["not_asked"] == ids(3)
    assert service.received == []


def test_a_clear_requests_every_patient_again(service):
    store = Store()
    run(cohort(ids(5)), store)
    run(cohort(ids(5)), store, max_tries=0)
    assert set(service.asked().values()) == {1}
    run(cohort(ids(5)), store, max_tries=1)
    assert set(service.asked().values()) == {2}


def test_without_durable_nothing_is_stored(service):
    store = Store()
    run(cohort(ids(5), durable=False), store)
    assert store.sets == 0


def test_the_store_holds_no_token_and_no_external_id(service):
    store = Store()
    run(cohort([{"patient_id": "a", "external_id": "mrn-12345"}]), store)
    kept = "".join(store.values.values())
    assert "eyJ" not in kept
    assert "mrn-12345" not in kept


# A store that refuses writes


def refusing_after(service, requests):
    """A state store that refuses writes once so many requests were sent."""
    return RefusingStore(lambda store: len(service.received) >= requests)


def test_a_refused_write_after_the_last_request_fails_nothing(service, task_log):
    result = run(cohort(ids(6)), refusing_after(service, 6))
    assert patient_ids_by_outcome(result)["in_progress"] == ids(6)
    assert all("ambiguous" not in entry for entry in result["in_progress"])
    log = task_log()
    assert "the API server answered 500" in log
    assert "A retry takes these updates for ambiguous" in log


def test_after_a_refused_write_no_more_patients_are_requested_and_every_answer_is_in_the_result(service, task_log):
    store = refusing_after(service, 10)
    service.answers(accepts_after(0.05))
    error, result = failing(cohort(ids(40), max_concurrency=4), store, error=StateStoreError, match="not requested")
    assert not isinstance(error, AirflowFailException)
    requested = service.asked()
    assert sorted(requested) == patient_ids_by_outcome(result)["in_progress"]
    assert all("ambiguous" not in entry for entry in result["in_progress"])
    assert len(result["not_asked"]) == 40 - len(requested)
    assert requested.total() == len(requested) < 20
    assert "A retry takes these updates for ambiguous" in task_log()
    store.refuses = lambda store: False
    assert len(run(cohort(ids(40)), store)["in_progress"]) == 40
    assert set(service.asked().values()) == {1}


def test_a_superseded_try_whose_intent_is_refused_sends_nothing(service):
    failing(cohort(ids(6)), refusing_after(service, 0), error=StateStoreError)
    assert service.received == []


# Killed


@pytest.mark.parametrize("choice", CHOICES)
def test_the_retry_of_a_killed_task_requests_only_the_rest(service, monkeypatch, choice):
    store = Store()
    service.answers(accepts_after(0.01))
    task = cohort(ids(100), max_concurrency=4)
    break_at(task, 37, Killed(), monkeypatch)
    with pytest.raises(Killed):
        run(task, store)
    before = service.asked()
    assert set(before.values()) == {1}
    ti = TaskInstance(None)
    again = cohort(ids(100), max_concurrency=4, on_ambiguous=choice, max_failures=0.5)
    ti.task = again
    result = run(again, store, ti=ti)
    check_resumed(service, result, choice, in_flight=4 + 1 + 4)


def check_resumed(service, result, choice, in_flight):
    requested = service.asked()
    if choice == "assume_started":
        ambiguous = [entry["patient_id"] for entry in result["in_progress"] if entry.get("ambiguous")]
    else:
        ambiguous = patient_ids_by_outcome(result)["failed"]
    assert len(ambiguous) <= in_flight
    counts = {each: requested[each] for each in ids(len(requested | dict.fromkeys(ambiguous, 0)))}
    if choice == "retry":
        assert ambiguous == []
        assert sum(count == 2 for count in counts.values()) <= in_flight
        assert set(counts.values()) <= {1, 2}
    else:
        assert {count for each, count in counts.items() if each not in ambiguous} == {1}
        assert {counts[each] for each in ambiguous} <= {0, 1}
    return ambiguous


def kill_9(service, folder, patient_ids, when):
    """Start a worker's process, kill it when the condition holds, and return how often each patient was requested."""
    worker = subprocess.Popen(
        [sys.executable, operators.__file__, folder, json.dumps(patient_ids), "8"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    deadline = time.monotonic() + 60
    while not when() and time.monotonic() < deadline:
        time.sleep(0.005)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    time.sleep(0.1)
    return service.asked()


def test_after_kill_9_in_the_middle_of_500_updates_only_those_in_flight_are_ambiguous(service, tmp_path):
    service.answers(accepts_after(0.03))
    before = kill_9(service, tmp_path, ids(500), lambda: len(service.received) >= 200)
    assert 200 <= len(before) < 300
    result = run(cohort(ids(500), max_concurrency=8), Store(tmp_path))
    assert len(result["in_progress"]) == 500
    ambiguous = check_resumed(service, result, "assume_started", in_flight=8 + 2 + 8)
    assert ambiguous
    assert len(set(ambiguous) - set(before)) <= 8


def test_after_kill_9_patients_that_waited_for_the_rate_limit_are_not_ambiguous(service, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", connection(service.url, service.token, requests_per_second=4))
    before = kill_9(service, tmp_path, ids(30), lambda: len(service.received) >= 6)
    monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", connection(service.url, service.token))
    result = run(cohort(ids(30)), Store(tmp_path))
    ambiguous = {entry["patient_id"] for entry in result["in_progress"] if entry.get("ambiguous")}
    assert len(ambiguous) <= 1
    assert set(before) | set(service.asked()) | ambiguous == set(ids(30))
    assert set(service.asked().values()) == {1}


def test_after_kill_9_patients_that_waited_for_a_retry_are_not_ambiguous(service, tmp_path):
    service.answers(status(429, Retry_After="60"))
    store = Store(tmp_path)

    def all_wait():
        return len(service.received) >= 8 and store.get("healthex_journal_0")["open"] == {}

    assert len(kill_9(service, tmp_path, ids(10), all_wait)) >= 8
    service.answers(says(STARTED))
    result = run(cohort(ids(10)), store)
    assert not any(entry.get("ambiguous") for entry in result["in_progress"])
    assert len(result["in_progress"]) == 10


def test_after_on_kill_no_more_patients_are_requested_and_the_result_lists_them(service):
    task = cohort(ids(200), max_concurrency=4)

    def kill_in_the_middle(request):
        if len(service.received) == 20:
            task.on_kill()

    service.answers(accepts_after(0.05))
    service.answers_each(kill_in_the_middle)
    store = Store()
    _, result = failing(task, store, error=HealthExError, match="not requested")
    requested = service.asked()
    time.sleep(0.2)
    assert service.asked() == requested
    assert sorted(requested) == patient_ids_by_outcome(result)["in_progress"]
    assert len(result["not_asked"]) == 200 - len(requested)
    run(cohort(ids(200)), store)
    assert set(service.asked().values()) == {1}
    assert len(service.received) == 200


def test_on_kill_ends_waits_at_once(service):
    service.answers(says(STARTED), status(429, Retry_After="60"))
    task = cohort(ids(50), max_concurrency=4)
    threading.Timer(0.3, task.on_kill).start()
    began = time.monotonic()
    failing(task)
    assert time.monotonic() - began < 20


# Size of the store, link and project


def test_stored_values_stay_small_however_many_patients(service):
    store = Store()
    run(cohort(ids(2000), max_concurrency=32), store)
    assert store.largest < 32_000
    assert len(store.values) > 5
    assert len(run(cohort(ids(2000)), store)["in_progress"]) == 2000
    assert len(service.received) == 2000


def test_the_operator_links_to_the_project():
    assert [link.name for link in HealthExUpdateCohortOperator.operator_extra_links] == ["HealthEx project"]


def test_the_project_defaults_to_the_connections(service):
    assert run(cohort(["a"]))["project_id"] == PROJECT
    assert run(cohort(["a"], project_id="other"))["project_id"] == "other"
