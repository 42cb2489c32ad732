"""The journal: what a retry reads of earlier tries, wherever they ended, and how it is told from a clear."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from helpers.operators import RefusingStore, Store

from airflow_provider_healthex.operators.journal import Attempt, Journal, StateStoreError
from airflow_provider_healthex.operators.outcomes import PatientOutcome

REQUESTED_AT = "2026-11-22T17:40:05+00:00"
CLEARED = Attempt(max_tries=1, clear_number=1, try_number=2)


def accepted(patient_id):
    return PatientOutcome(patient_id, "accepted", requested_at=REQUESTED_AT)


def read(store, attempt=Attempt()):  # noqa: B008
    return {name: outcome.kind for name, outcome in Journal(store, attempt).outcomes.items()}


# A retry or a clear. Each try: (max_tries, clear_number, retries, try_number), as Airflow 3.3.2 has them.

TRIES = {
    "an automatic retry": ([(2, 0, 2, 1), (2, 0, 2, 2), (2, 0, 2, 3)], 1),
    "a clear at rest": ([(0, 0, 0, 1), (1, 1, 0, 2)], 2),
    "a clear at rest, then a retry": ([(1, 0, 1, 1), (2, 1, 1, 2), (2, 1, 1, 3)], 2),
    "two clears": ([(1, 0, 1, 1), (2, 1, 1, 2), (3, 2, 1, 3)], 3),
    "retries 3 to 1 before a retry": ([(3, 0, 3, 1), (3, 0, 1, 2)], 1),
    "retries 2 to 5 before a retry": ([(2, 0, 2, 1), (2, 0, 5, 2)], 1),
    "retries 1 to 0, parsed, then cleared": ([(1, 0, 1, 1), (1, 1, 0, 2)], 2),
    "retries 0 to 1, cleared before it is parsed": ([(0, 0, 0, 1), (1, 1, 1, 2)], 2),
    "another task cleared before a retry": ([(2, 0, 2, 1), (2, 1, 2, 2)], 1),
    "another task cleared twice, retries between": ([(3, 0, 3, 1), (3, 1, 3, 2), (3, 2, 3, 3)], 1),
    "another task cleared, then this one": ([(2, 0, 2, 1), (2, 1, 2, 2), (4, 2, 2, 3)], 2),
    # Not covered:
    "cleared while running, its old count left": ([(2, 0, 2, 1), (2, 1, 2, 2)], 1),
    "retries 2 to 1 and another task cleared before a retry": ([(2, 0, 2, 1), (2, 1, 1, 2)], 2),
}


@pytest.mark.parametrize(("tries", "requested"), TRIES.values(), ids=TRIES.keys())
class TestRetryAndClear:
    def test_an_ambiguous_patient_stays_ambiguous_within_a_series(self, tries, requested):
        store, count = Store(), 0
        for each in tries:
            journal = Journal(store, Attempt(*each))
            if journal.ambiguous_since("a") is None:
                journal.checkpoint(["a"])
                count += 1
        assert count == requested

    def test_an_accepted_patient_is_requested_once_a_series(self, tries, requested):
        store, count = Store(), 0
        for number, each in enumerate(tries):
            journal = Journal(store, Attempt(*each))
            if "a" not in journal.outcomes:
                journal.checkpoint(["a"])
                journal.record(accepted("a"))
                count += 1
            journal.checkpoint([f"b{number}"])  # each try leaves pages of its own
        assert count == requested


def test_a_clear_of_another_task_within_a_series_is_reported():
    store = Store()
    Journal(store, Attempt(2, 0, 2, 1)).checkpoint(["a"])
    assert not Journal(store, Attempt(2, 0, 2, 2)).run_was_cleared
    assert Journal(store, Attempt(2, 1, 2, 2)).run_was_cleared


def test_another_series_reads_no_page_of_an_older_one_even_with_fewer_pages():
    store = Store()
    for patient_id in "abc":
        Journal(store).checkpoint([patient_id])
    assert read(store, CLEARED) == {}
    Journal(store, CLEARED).checkpoint(["d"])
    assert read(store, CLEARED) == {"d": "ambiguous"}


def test_a_retry_for_another_project_reads_nothing_of_this_one():
    store = Store()
    for patient_id in "ab":
        Journal(store, project_id="first").checkpoint([patient_id])
    assert Journal(store, project_id="second").outcomes == {}
    Journal(store, project_id="second").checkpoint(["c"])
    assert list(Journal(store, project_id="second").outcomes) == ["c"]


# Records that a retry reads


def test_a_patient_in_flight_without_an_outcome_is_ambiguous():
    store = Store()
    journal = Journal(store)
    journal.checkpoint(["a", "b"])
    assert read(store) == {"a": "ambiguous", "b": "ambiguous"}
    journal.record(accepted("a"))
    journal.checkpoint(["b", "c"])
    assert read(store) == {"a": "accepted", "b": "ambiguous", "c": "ambiguous"}


def test_a_patient_no_longer_in_flight_was_not_requested():
    store = Store()
    journal = Journal(store)
    journal.checkpoint(["a", "b"])
    journal.checkpoint(["b"])
    assert read(store) == {"a": "not_requested", "b": "ambiguous"}
    journal.checkpoint(["a", "b"])
    assert read(store) == {"a": "ambiguous", "b": "ambiguous"}


def test_the_requested_at_of_an_open_patient_is_the_moment_of_the_write():
    store, before = Store(), datetime.now(timezone.utc).replace(microsecond=0)
    Journal(store).checkpoint(["a"])
    assert before <= datetime.fromisoformat(Journal(store).ambiguous_since("a")) <= datetime.now(timezone.utc)


@pytest.mark.parametrize(
    "outcome",
    [
        accepted("a"),
        PatientOutcome("a", "needs_patient_action", reason="CONSENT_EXPIRED"),
        PatientOutcome.ambiguous("a", REQUESTED_AT, status_code=500),
        PatientOutcome("a", "failed", status_code=429, error="HealthExRateLimitError", retryable=True),
        PatientOutcome("a", "not_requested"),
    ],
)
def test_an_outcome_is_read_as_it_was_written(outcome):
    store = Store()
    journal = Journal(store)
    journal.checkpoint(["a"])
    journal.record(outcome)
    journal.checkpoint()
    assert Journal(store).outcomes == {"a": outcome}


def test_outcomes_on_later_pages_close_what_earlier_ones_opened():
    store = Store()
    journal = Journal(store)
    cohort = [f"patient-{number}" for number in range(600)]
    journal.checkpoint(cohort[:2])
    for number, earlier in enumerate(cohort[:-2]):
        journal.record(accepted(earlier))
        journal.checkpoint(cohort[number + 1 : number + 3])
    assert len(store.values) > 2
    kinds = read(store)
    assert [name for name, kind in kinds.items() if kind == "ambiguous"] == cohort[-2:]
    assert len(kinds) == 600


def test_each_try_writes_after_the_pages_of_earlier_tries():
    store = Store()
    for patient_id in "abc":
        journal = Journal(store)
        journal.checkpoint([patient_id])
        journal.record(accepted(patient_id))
        journal.checkpoint()
    assert read(store) == dict.fromkeys("abc", "accepted")
    assert len(store.values) == 3


def test_a_patient_who_is_ambiguous_twice_keeps_the_first_requested_at():
    store = Store()
    journal = Journal(store)
    journal.checkpoint(["a"])
    journal.record(PatientOutcome.ambiguous("a", REQUESTED_AT))
    journal.checkpoint()
    Journal(store).checkpoint(["a"])
    assert Journal(store).ambiguous_since("a") == REQUESTED_AT


def test_a_failed_patient_in_flight_again_is_ambiguous():
    store = Store()
    journal = Journal(store)
    journal.checkpoint(["a"])
    journal.record(PatientOutcome("a", "failed", error="HealthExRateLimitError", retryable=True))
    journal.checkpoint()
    Journal(store).checkpoint(["a"])
    assert read(store) == {"a": "ambiguous"}


def test_an_ambiguous_patient_whose_retry_is_rejected_stays_ambiguous():
    store = Store()
    Journal(store).checkpoint(["a"])
    again = Journal(store)
    again.checkpoint(["a", "b"])
    again.checkpoint()
    assert read(store) == {"a": "ambiguous", "b": "not_requested"}


def test_a_checkpoint_without_news_writes_nothing():
    store = Store()
    journal = Journal(store)
    journal.checkpoint()
    journal.checkpoint(["a"])
    journal.checkpoint(["a"])
    assert store.sets == 1


# A store that refuses writes


def test_a_refused_intent_raises():
    journal = Journal(RefusingStore.after(0))
    with pytest.raises(StateStoreError, match="RuntimeError: the API server answered 500"):
        journal.checkpoint(["a"])
    journal.break_off()
    assert journal.outcomes == {}


def test_refused_outcomes_are_logged_and_raise_nothing_without_a_patient_in_flight(caplog):
    journal = Journal(RefusingStore.after(1))
    journal.checkpoint(["a"])
    journal.record(accepted("a"))
    journal.checkpoint()
    assert "refused a write" in caplog.text
    assert '{"a": {"kind": "accepted", "requested_at": "2026-11-22T17:40:05+00:00"}}' in caplog.text


def test_outcomes_are_written_once_the_store_accepts_writes_again():
    store = RefusingStore.after(1)
    journal = Journal(store)
    journal.checkpoint(["a"])
    journal.record(accepted("a"))
    with pytest.raises(StateStoreError):
        journal.checkpoint(["b"])
    store.refuses = lambda store: False
    journal.flush()
    assert read(store) == {"a": "accepted"}
