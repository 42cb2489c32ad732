"""What the next try reads of what this one wrote, wherever this one ended."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from operators.cohorts import Store

from airflow_provider_healthex.operators.journal import CohortJournal
from airflow_provider_healthex.operators.outcomes import Outcome

SINCE = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)


def started(patient_id):
    return Outcome(patient_id, "in_progress", requested_at=SINCE)


def read(store, series=0):
    return {name: outcome.kind for name, outcome in CohortJournal(store, series).outcomes.items()}


def test_who_was_handed_over_and_has_no_outcome_is_ambiguous():
    store = Store()
    journal = CohortJournal(store)
    journal.checkpoint(["a", "b"])
    assert read(store) == {"a": "ambiguous", "b": "ambiguous"}
    journal.note(started("a"))
    journal.checkpoint(["c"])
    assert read(store) == {"a": "in_progress", "b": "ambiguous", "c": "ambiguous"}


def test_the_baseline_of_who_is_lost_is_the_moment_of_handing_over():
    store, before = Store(), datetime.now(timezone.utc).replace(microsecond=0)
    CohortJournal(store).checkpoint(["a"])
    assert before <= CohortJournal(store).lost_since("a") <= datetime.now(timezone.utc)


@pytest.mark.parametrize(
    "outcome",
    [
        started("a"),
        Outcome("a", "needs_patient", reason="CONSENT_EXPIRED"),
        Outcome("a", "ambiguous", requested_at=SINCE, status_code=500),
        Outcome("a", "failed", status_code=429, error="HealthExRateLimitError", again=True),
        Outcome("a", "not_asked"),
    ],
)
def test_an_outcome_is_read_as_it_was_noted(outcome):
    store = Store()
    journal = CohortJournal(store)
    journal.checkpoint(["a"])
    journal.note(outcome)
    journal.checkpoint()
    assert CohortJournal(store).outcomes == {"a": outcome}


def test_outcomes_on_later_pages_close_what_earlier_ones_opened():
    store = Store()
    journal = CohortJournal(store)
    everybody = [f"patient-{number}" for number in range(600)]
    journal.checkpoint(everybody[:2])
    for earlier, later in zip(everybody, everybody[2:], strict=False):
        journal.note(started(earlier))
        journal.checkpoint([later])
    assert len(store.values) > 2
    kinds = read(store)
    assert [name for name, kind in kinds.items() if kind == "ambiguous"] == everybody[-2:]
    assert len(kinds) == 600


def test_each_try_goes_on_after_the_pages_of_the_last():
    store = Store()
    for patient_id in "abc":
        journal = CohortJournal(store)
        journal.checkpoint([patient_id])
        journal.note(started(patient_id))
        journal.checkpoint()
    assert read(store) == dict.fromkeys("abc", "in_progress")
    assert len(store.values) == 3


def test_who_was_asked_again_and_lost_keeps_the_earliest_baseline():
    store = Store()
    journal = CohortJournal(store)
    journal.checkpoint(["a"])
    journal.note(Outcome("a", "ambiguous", requested_at=SINCE))
    journal.checkpoint()
    CohortJournal(store).checkpoint(["a"])
    assert CohortJournal(store).lost_since("a") == SINCE


def test_who_failed_and_was_lost_when_asked_again_is_ambiguous():
    store = Store()
    journal = CohortJournal(store)
    journal.checkpoint(["a"])
    journal.note(Outcome("a", "failed", error="HealthExRateLimitError", again=True))
    journal.checkpoint()
    CohortJournal(store).checkpoint(["a"])
    assert read(store) == {"a": "ambiguous"}


def test_who_was_withdrawn_was_not_asked_but_may_have_been_earlier():
    store = Store()
    journal = CohortJournal(store)
    journal.checkpoint(["a"])
    again = CohortJournal(store)
    again.checkpoint(["a", "b"])
    again.withdraw(again.unanswered)
    again.checkpoint()
    assert read(store) == {"a": "ambiguous", "b": "not_asked"}


def test_another_series_sees_nothing_of_this_one_even_with_fewer_pages():
    store = Store()
    for patient_id in "abc":
        CohortJournal(store, 0).checkpoint([patient_id])
    assert read(store, 1) == {}
    CohortJournal(store, 1).checkpoint(["d"])
    assert read(store, 1) == {"d": "ambiguous"}


def test_nothing_is_written_where_there_is_nothing_new():
    store = Store()
    journal = CohortJournal(store)
    journal.checkpoint()
    journal.checkpoint(["a"])
    journal.checkpoint()
    assert store.sets == 1
