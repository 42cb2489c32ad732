"""How often a call is tried, and how long the waits are. `classify` decides what may be retried."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar, cast

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential_jitter
from tenacity.nap import sleep_using_event

from airflow_provider_healthex.client.cancel import CancelEvent, Cancelled
from airflow_provider_healthex.client.rate_limit import RateLimit
from airflow_provider_healthex.exceptions import HealthExConnectionError, HealthExError, HealthExUpdateAmbiguousError

log = logging.getLogger(__name__)

TRIES = 5
#: Seconds of waiting in all.
LONGEST_WAIT = 300.0
#: Without a Retry-After: about 1, 2, 4 and 8 seconds.
BACKOFF = wait_exponential_jitter(initial=1, max=60)

_T = TypeVar("_T")


class FailedTry(Exception):
    """
    Carries the error of one try through tenacity.

    :param error: is raised if no other try follows.
    :param retry: whether the call may be retried.
    :param wait: seconds that HealthEx wants to pass before, or None.
    :param throttled: HealthEx is too busy for any request, not for this one alone.
    """

    def __init__(
        self, error: HealthExError, *, retry: bool = False, wait: float | None = None, throttled: bool = False
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry = retry
        self.wait = wait
        self.throttled = throttled

    @property
    def may_have_started(self) -> bool:
        """Whether the try may have started an update."""
        return isinstance(self.error, HealthExUpdateAmbiguousError)


def retried(
    send: Callable[[], _T], *, subject: str, rate_limit: RateLimit, cancelled: CancelEvent, tries: int | None = None
) -> _T:
    """
    Return the result of the first try that succeeds.

    :param send: one try. Raises `FailedTry`, or `Cancelled` if it was cancelled before it sent anything.
    :param tries: at most, by default `TRIES`.
    :raises HealthExError: the error of the last try, also where the next one was cancelled.
    """
    limit = tries or TRIES

    def wait(state: RetryCallState) -> float:
        seconds = _wait(state)
        # A longer wait is left to the caller: nobody else needs to be held up by it.
        if _failed(state).throttled and seconds <= LONGEST_WAIT:
            rate_limit.back_off(seconds)
        return seconds

    def is_last(state: RetryCallState) -> bool:
        exhausted = state.attempt_number >= limit or state.idle_for + state.upcoming_sleep > LONGEST_WAIT
        return exhausted or cancelled.is_set()

    def report(state: RetryCallState) -> None:
        text = "%s Retrying in %.1f s (try %d of %d)."
        log.warning(text, _failed(state).error, state.upcoming_sleep, state.attempt_number, limit)

    last = FailedTry(HealthExConnectionError(f"{subject} not sent: it was cancelled. It is safe to retry."))
    try:
        for attempt in Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, FailedTry) and error.retry),
            wait=wait,
            stop=is_last,
            sleep=sleep_using_event(cancelled),
            before_sleep=report,
            reraise=True,
        ):
            with attempt:
                try:
                    return send()
                except FailedTry as failed:
                    last = failed
                    raise
    except (FailedTry, Cancelled):
        pass
    raise last.error  # here, so that it has neither cause nor context


def _failed(state: RetryCallState) -> FailedTry:
    return cast("FailedTry", state.outcome and state.outcome.exception())


def _wait(state: RetryCallState) -> float:
    seconds = _failed(state).wait
    return BACKOFF(state) if seconds is None else seconds
