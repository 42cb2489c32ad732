from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers.loopback import PROJECT, Received, Reply, Service, status

from airflow_provider_healthex.client import PatientUpdate
from airflow_provider_healthex.client.cancel import CancelEvent, Cancelled
from airflow_provider_healthex.client.rate_limit import RateLimit, rate_limit_for


def test_requests_of_many_threads_are_spaced_evenly() -> None:
    rate_limit, cancelled, began = RateLimit(), threading.Event(), time.monotonic()

    def turn(_: int) -> float:
        rate_limit.wait(50, cancelled)
        return time.monotonic() - began

    with ThreadPoolExecutor(8) as threads:
        turns = sorted(threads.map(turn, range(8)))
    assert all(turn >= 0.02 * index - 0.005 for index, turn in enumerate(turns))
    assert turns[-1] < 5


def test_an_idle_time_gives_no_burst() -> None:
    rate_limit, cancelled = RateLimit(), threading.Event()
    rate_limit.wait(20, cancelled)
    time.sleep(0.2)
    began = time.monotonic()
    for _ in range(3):
        rate_limit.wait(20, cancelled)
    assert time.monotonic() - began >= 0.095


def test_without_a_limit_no_request_waits() -> None:
    rate_limit, cancelled, began = RateLimit(), threading.Event(), time.monotonic()
    for _ in range(1000):
        rate_limit.wait(None, cancelled)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("per_second", [None, 0.001])
def test_a_cancel_ends_the_wait_and_the_request_is_not_sent(per_second: float | None) -> None:
    rate_limit, cancelled = RateLimit(), threading.Event()
    rate_limit.wait(per_second, cancelled)
    threading.Timer(0.05, cancelled.set).start()
    if per_second is None:
        cancelled.wait()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        rate_limit.wait(per_second, cancelled)
    assert time.monotonic() - began < 10


def test_the_same_key_has_the_same_rate_limit() -> None:
    assert rate_limit_for("a") is rate_limit_for("a")
    assert rate_limit_for("a") is not rate_limit_for("b")


def test_no_request_is_sent_during_a_backoff() -> None:
    rate_limit, cancelled = RateLimit(), threading.Event()
    rate_limit.back_off(0.2)
    rate_limit.back_off(0.1)  # a shorter one doesn't end it
    began = time.monotonic()
    rate_limit.wait(None, cancelled)
    assert 0.19 <= time.monotonic() - began < 5
    rate_limit.wait(None, cancelled)
    assert time.monotonic() - began < 5


def test_a_backoff_prolongs_a_wait_that_has_begun() -> None:
    rate_limit, cancelled = RateLimit(), threading.Event()
    rate_limit.wait(10, cancelled)
    threading.Timer(0.05, rate_limit.back_off, (0.3,)).start()
    began = time.monotonic()
    rate_limit.wait(10, cancelled)
    assert time.monotonic() - began >= 0.34


def test_after_a_backoff_there_is_no_burst_and_the_rate_recovers() -> None:
    rate_limit, cancelled, times = RateLimit(), threading.Event(), []
    rate_limit.back_off(0.2)
    rate_limit.back_off(0.2)  # of the same burst

    def go(_: int) -> None:
        rate_limit.wait(None, cancelled)
        times.append(time.monotonic())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(go, range(40)))
    gaps = [later - earlier for earlier, later in zip(sorted(times), sorted(times)[1:], strict=False)]
    assert min(gaps[:5]) >= 0.04
    assert sum(gaps[-5:]) < sum(gaps[:5])


def test_the_limit_of_a_service_that_documents_none_is_found(service: Service, connect: Callable[..., Any]) -> None:
    """With 16 threads and 10 requests a second, every patient gets an answer within the tries each has."""
    lock, accepted = threading.Lock(), deque[float]()

    def reply(request: Received) -> Reply | None:
        with lock:
            while accepted and accepted[0] < request.at - 1:
                accepted.popleft()
            if len(accepted) >= 10:
                return status(429, Retry_After="1")
            accepted.append(request.at)
            return None

    service.answers_each(reply)
    ids = [f"patient-{number}" for number in range(60)]
    results = list(connect().update_patients(PROJECT, ids, max_concurrency=16))
    assert {type(each) for each in results} == {PatientUpdate}


def test_cancelling_the_whole_cancels_each_part_and_not_the_reverse() -> None:
    whole = CancelEvent()
    with whole.part() as one, whole.part() as other:
        one.set()
        assert not whole.is_set()
        assert not other.is_set()
        whole.set()
        assert other.is_set()
        with whole.part() as late:
            assert late.is_set()


def test_the_end_of_a_part_cancels_it_alone() -> None:
    whole = CancelEvent()
    with whole.part() as part:
        pass
    assert part.is_set()
    assert not whole.is_set()
