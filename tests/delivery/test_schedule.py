"""When a wait pokes next."""

from __future__ import annotations

import itertools

import pytest

from airflow_provider_healthex.delivery.schedule import PokeSchedule


def schedule(**changes):
    return PokeSchedule(**{"started": 1_000.0, "deadline": 5_000.0, "poke_interval": 60.0, **changes})


def pokes(wait: PokeSchedule, count: int) -> list[float]:
    """Return the seconds between so many pokes."""
    now, pauses = wait.started, []
    for _ in range(count):
        pauses.append(wait.pause(now))
        now += pauses[-1]
    return pauses


def test_pokes_are_an_interval_apart():
    assert pokes(schedule(), 3) == [60, 60, 60]


def test_the_last_poke_is_at_the_deadline():
    assert schedule().pause(4_970) == 30
    assert schedule().pause(5_001) == 0


def test_there_is_a_poke_when_a_part_of_the_cohort_becomes_enough():
    wait = schedule(enough_at=1_090)
    assert pokes(wait, 3) == [60, 30, 60]
    assert [wait.is_enough(now) for now in (1_089, 1_090)] == [False, True]


def test_backoff_doubles_the_interval_with_jitter_as_airflows_sensors_do():
    pauses = pokes(schedule(exponential_backoff=True, deadline=1e9), 8)
    for count, pause in enumerate(pauses, start=1):
        least = 60 * 2 ** (count - 2)
        assert least <= pause < 2 * least


def test_backoff_goes_on_in_another_process_where_it_was():
    wait = schedule(exponential_backoff=True, deadline=1e9)
    times = list(itertools.accumulate(pokes(wait, 6), initial=wait.started))
    again = schedule(exponential_backoff=True, deadline=1e9)
    assert [again.pause(now) for now in times[:6]] == pokes(wait, 6)


def test_waits_that_began_at_other_times_do_not_poke_together():
    assert len({schedule(exponential_backoff=True, started=1_000.0 + n).pause(1_000.0 + n) for n in range(9)}) > 4


@pytest.mark.parametrize("max_wait", [0.5, 90, 100])
def test_max_wait_is_the_longest_interval(max_wait):
    pauses = pokes(schedule(exponential_backoff=True, max_wait=max_wait), 30)
    assert max(pauses) == max_wait


def test_backoff_from_no_interval_at_all_is_a_second():
    assert pokes(schedule(poke_interval=0.0, exponential_backoff=True), 3) == [1, 1, 1]
