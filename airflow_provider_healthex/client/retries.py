"""How often a request is tried and how long is waited between the tries; what is repeated, `verdict` knows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_result, wait_exponential_jitter
from tenacity.nap import sleep_using_event

from airflow_provider_healthex.client.rate_limit import Stopped
from airflow_provider_healthex.exceptions import HealthExError

log = logging.getLogger(__name__)

TRIES = 5
#: Seconds of waiting in all.
PATIENCE = 300.0
#: Where the service doesn't say how long to wait: about 1, 2, 4 and 8 seconds.
BACKOFF = wait_exponential_jitter(initial=1, max=60)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Failure:
    """
    A try that failed.

    :param error: what the caller gets if it was the last one.
    :param repeat: whether it may be repeated by itself.
    :param wait: seconds the service asked to wait, or None.
    :param turned_away: the service is too busy for anybody's requests, not for this one alone.
    """

    error: HealthExError
    repeat: bool = False
    wait: float | None = None
    turned_away: bool = False


def repeated(
    attempt: Callable[[], _T | Failure],
    stop: threading.Event,
    never_tried: Failure,
    slow_down: Callable[[float], None],
    tries: int | None = None,
) -> _T | Failure:
    """
    Return the first outcome that isn't to be repeated, or the last one the limits allow.

    :param attempt: one try; may raise `Stopped`, if it was stopped before it sent anything.
    :param stop: ends every wait, and with it the tries.
    :param never_tried: the outcome if `stop` came before the first try.
    :param slow_down: is told the seconds for which nobody should ask, when a try was turned away. Not where they
        are more than anybody's patience: then it is for the caller to come back later.
    :param tries: the most tries, by default `TRIES`.
    """
    last: _T | Failure = never_tried
    limit = tries or TRIES

    def keep_last() -> _T | Failure:
        nonlocal last
        last = attempt()
        return last

    def wait(state: RetryCallState) -> float:
        seconds = _wait(state)
        if _failure(state).turned_away and seconds <= PATIENCE:
            slow_down(seconds)
        return seconds

    retrying = Retrying(
        retry=retry_if_result(lambda outcome: isinstance(outcome, Failure) and outcome.repeat),
        wait=wait,
        stop=lambda state: stop.is_set() or _exhausted(state, limit),
        sleep=sleep_using_event(stop),
        before_sleep=lambda state: _report(state, limit),
        retry_error_callback=lambda state: last,
    )
    try:
        return retrying(keep_last)
    except Stopped:
        return last


def _failure(state: RetryCallState) -> Failure:
    assert state.outcome is not None
    failure = state.outcome.result()
    assert isinstance(failure, Failure)
    return failure


def _wait(state: RetryCallState) -> float:
    asked = _failure(state).wait
    return BACKOFF(state) if asked is None else asked


def _exhausted(state: RetryCallState, tries: int) -> bool:
    return state.attempt_number >= tries or state.idle_for + state.upcoming_sleep > PATIENCE


def _report(state: RetryCallState, tries: int) -> None:
    log.warning(
        "%s Retrying in %.1f s (try %d of %d).",
        _failure(state).error,
        state.upcoming_sleep,
        state.attempt_number,
        tries,
    )
