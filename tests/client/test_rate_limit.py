from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_provider_healthex.client import PatientUpdate
from airflow_provider_healthex.client.rate_limit import RateLimit, Stop, Stopped, rate_limit_for

from .loopback import PROJECT, Received, Reply, Service, status


def test_requests_of_many_threads_are_spaced_evenly() -> None:
    pacer, stop, began = RateLimit(), threading.Event(), time.monotonic()

    def turn(_: int) -> float:
        pacer.wait(50, stop)
        return time.monotonic() - began

    with ThreadPoolExecutor(8) as threads:
        turns = sorted(threads.map(turn, range(8)))
    assert all(turn >= 0.02 * index - 0.005 for index, turn in enumerate(turns))
    assert turns[-1] < 5


def test_an_idle_time_gives_no_burst() -> None:
    pacer, stop = RateLimit(), threading.Event()
    pacer.wait(20, stop)
    time.sleep(0.2)
    began = time.monotonic()
    for _ in range(3):
        pacer.wait(20, stop)
    assert time.monotonic() - began >= 0.095


def test_without_a_limit_nobody_waits() -> None:
    pacer, stop, began = RateLimit(), threading.Event(), time.monotonic()
    for _ in range(1000):
        pacer.wait(None, stop)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("limit", [None, 0.001])
def test_a_stop_ends_the_wait_and_refuses_the_turn(limit: float | None) -> None:
    pacer, stop = RateLimit(), threading.Event()
    pacer.wait(limit, stop)
    threading.Timer(0.05, stop.set).start()
    if limit is None:
        stop.wait()
    began = time.monotonic()
    with pytest.raises(Stopped):
        pacer.wait(limit, stop)
    assert time.monotonic() - began < 10


def test_the_same_key_has_the_same_pacer() -> None:
    assert rate_limit_for("a") is rate_limit_for("a")
    assert rate_limit_for("a") is not rate_limit_for("b")


def test_nobody_goes_while_the_service_wants_quiet() -> None:
    pacer, stop = RateLimit(), threading.Event()
    pacer.hold(0.2)
    pacer.hold(0.1)  # a shorter one doesn't end it
    began = time.monotonic()
    pacer.wait(None, stop)
    assert 0.19 <= time.monotonic() - began < 5
    pacer.wait(None, stop)
    assert time.monotonic() - began < 5


def test_who_waits_already_waits_longer() -> None:
    pacer, stop = RateLimit(), threading.Event()
    pacer.wait(10, stop)
    threading.Timer(0.05, pacer.hold, (0.3,)).start()
    began = time.monotonic()
    pacer.wait(10, stop)
    assert time.monotonic() - began >= 0.34


def test_after_the_quiet_nobody_goes_in_a_burst_and_the_pace_recovers() -> None:
    pacer, stop, times = RateLimit(), threading.Event(), []
    pacer.hold(0.2)
    pacer.hold(0.2)  # of the same burst

    def go(_: int) -> None:
        pacer.wait(None, stop)
        times.append(time.monotonic())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(go, range(40)))
    gaps = [later - earlier for earlier, later in zip(sorted(times), sorted(times)[1:], strict=False)]
    assert min(gaps[:5]) >= 0.04
    assert sum(gaps[-5:]) < sum(gaps[:5])


def test_the_limit_of_a_service_that_names_none_is_found(service: Service, connect: Callable[..., Any]) -> None:
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
    came = list(connect().update_patients(PROJECT, ids, max_concurrency=16))
    assert {type(each) for each in came} == {PatientUpdate}


def test_stopping_the_whole_stops_each_share_and_not_the_reverse() -> None:
    whole = Stop()
    one, other = whole.share(), whole.share()
    one.set()
    assert not whole.is_set()
    assert not other.is_set()
    whole.release(one)
    whole.set()
    assert other.is_set()
    assert whole.share().is_set()
