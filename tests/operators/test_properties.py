"""Properties of any history of a task, and of any fraction of any cohort."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_healthex.operators.cohort import failures_allowed
from airflow_provider_healthex.operators.journal import Attempt

retries = st.integers(0, 6)


@given(retries, st.lists(retries, min_size=1, max_size=6))
def test_no_edit_of_retries_makes_a_retry_a_clear(at_first, edits):
    first = Attempt(max_tries=at_first, retries=at_first)
    for try_number, edited in enumerate(edits, 2):
        retry = Attempt(max_tries=at_first, retries=edited, try_number=try_number)
        assert retry.continues(first.start)


@given(retries, st.integers(1, 7), retries, st.integers(1, 3))
def test_no_edit_of_retries_makes_a_clear_a_retry(at_first, tries, edited, clears):
    first = Attempt(max_tries=at_first, retries=at_first)
    # A clear at rest, as Airflow does it: the tries used so far and the retries that the file has then.
    cleared = Attempt(max_tries=tries + edited, clear_number=clears, retries=edited, try_number=tries + 1)
    assert not cleared.continues(first.start)


@given(st.integers(1, 6), st.integers(1, 3), st.data())
def test_a_clear_of_another_task_is_no_clear_of_a_task_that_waits_for_its_retry(at_first, clears, data):
    try_number = data.draw(st.integers(2, at_first + 1))
    first = Attempt(max_tries=at_first, retries=at_first)
    retry = Attempt(max_tries=at_first, clear_number=clears, retries=at_first, try_number=try_number)
    assert retry.continues(first.start)


@given(st.integers(0, 9_999), st.integers(1, 10_000))
def test_a_fraction_of_the_patients_is_rounded_up_by_its_decimal_digits(ten_thousandths, total):
    allowed = failures_allowed(ten_thousandths / 10_000, total)
    share = Fraction(ten_thousandths, 10_000) * total
    assert share <= allowed < share + 1
