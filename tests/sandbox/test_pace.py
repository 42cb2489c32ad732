from __future__ import annotations

import time

import pytest
from helpers.sandbox import Caller

from airflow_provider_healthex.sandbox import Sandbox, patients
from airflow_provider_healthex.sandbox.service import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_second_of_calls_is_in_hand_and_refills_steadily():
    clock = Clock()
    limit = RateLimit(4, clock)
    assert [limit.take() for _ in range(5)] == [0, 0, 0, 0, 0.25]
    clock.now = 0.25
    assert [limit.take() for _ in range(2)] == [0, 0.25]
    clock.now = 100
    assert [limit.take() for _ in range(5)] == [0, 0, 0, 0, 0.25]


def test_less_than_one_call_a_second_is_possible():
    limit = RateLimit(0.5, Clock())
    assert [limit.take(), limit.take()] == [0, 2]


@pytest.mark.parametrize("per_second", [0, -1])
def test_a_limit_that_lets_nothing_through_is_refused(per_second):
    with pytest.raises(ValueError, match="above 0"):
        Sandbox(rate_limit=per_second)


def test_above_the_limit_calls_are_refused_with_a_time_to_wait_and_nothing_is_done():
    with Sandbox(rate_limit=2, delay=60) as sandbox:
        call = Caller(sandbox)
        answers = [call.update(patients.IN_PROGRESS) for _ in range(4)]
        assert [answer.status_code for answer in answers[:2]] == [201, 201]
        assert answers[-1].status_code == 429
        assert answers[-1].headers["Retry-After"] == "1"
        assert answers[-1].json()["statusCode"] == 429
        assert sandbox.asked(patients.IN_PROGRESS) == 4
        assert sandbox.accepted(patients.IN_PROGRESS) < 4
        time.sleep(1)
        assert call.update(patients.IN_PROGRESS).status_code == 201


def test_latency_is_for_every_call_of_the_api_and_not_for_the_control_api():
    with Sandbox(latency=2) as sandbox:
        call = Caller(sandbox)
        began = time.monotonic()
        call("GET", "/FHIR/R4/metadata")
        assert time.monotonic() - began >= 2
        began = time.monotonic()
        call("GET", "/_sandbox/state")
        assert time.monotonic() - began < 2
