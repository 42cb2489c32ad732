"""Asking for many patients: how many at once, when for no more of them, and who was never asked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from airflow_provider_healthex.client import retries
from airflow_provider_healthex.client.calls import identifier
from airflow_provider_healthex.client.models import PatientUpdate, PatientUpdateFailure
from airflow_provider_healthex.client.pacing import Stop
from airflow_provider_healthex.client.transport import POOL_SIZE
from airflow_provider_healthex.exceptions import (
    HealthExApiError,
    HealthExAuthenticationError,
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExNotFoundError,
    HealthExPermissionError,
    HealthExRequestError,
    HealthExTokenError,
)

log = logging.getLogger(__name__)

#: After this many patients in a row without a readable answer, the service is taken to be down. Each was tried for as
#: long as is sensible: to try the others as well would take hours, or make thousands ambiguous.
GIVE_UP_AFTER = 20

#: What the next patient would get, too.
_FOR_EVERYONE = (
    HealthExAuthenticationError,
    HealthExPermissionError,
    HealthExTokenError,
    HealthExConfigurationError,
)
#: What the service said about one patient.
_ABOUT_ONE = (HealthExNotFoundError, HealthExRequestError)

Outcome = PatientUpdate | PatientUpdateFailure


def distinct(patient_ids: Iterable[str], max_concurrency: int) -> list[str]:
    """
    Return the ids, each once, in the order they were given.

    :raises HealthExConfigurationError: an id can't be one, or the concurrency can't be used.
    """
    if isinstance(patient_ids, (str, bytes, Mapping)) or not isinstance(patient_ids, Iterable):
        raise HealthExConfigurationError(f"patient_ids must be a list of ids, not {type(patient_ids).__name__}")
    check_concurrency(max_concurrency)
    return list(dict.fromkeys(identifier("patient_id", patient_id) for patient_id in patient_ids))


def check_concurrency(max_concurrency: object) -> int:
    """Return how many requests may be in flight, if the connection pool holds that many."""
    if type(max_concurrency) is int and 1 <= max_concurrency <= POOL_SIZE:
        return max_concurrency
    raise HealthExConfigurationError(
        f"max_concurrency is {max_concurrency!r}; give a whole number from 1 to {POOL_SIZE}."
    )


def each_update(
    patient_ids: Iterable[str],
    ask: Callable[[str, Stop], Outcome],
    max_concurrency: int,
    stop: Stop,
    checkpoint: Callable[[Sequence[str]], None] | None,
) -> Iterator[Outcome]:
    """
    Yield what came of each patient, as it comes; who isn't yielded was not asked.

    :param patient_ids: are taken only as there are threads to ask for them.
    :param ask: asks for one patient, and doesn't raise what `exceptions` has; waits no longer once the event is set.
    :param max_concurrency: threads.
    :param stop: once set, nobody more is asked.
    :param checkpoint: as `HealthExClient.update_patients` has it.
    """
    own_stop, enough = stop.share(), threading.Event()

    def ask_unless_enough(patient_id: str) -> Outcome | None:
        if enough.is_set() or own_stop.is_set():
            return None
        outcome = ask(patient_id, own_stop)
        return None if own_stop.is_set() and _never_sent(outcome) else outcome

    # A few more than there are threads: while the checkpoint writes, those that get free find somebody to ask for.
    places = max_concurrency + max(1, max_concurrency // 4)
    ids, fuse = iter(patient_ids), _Fuse()
    handed_over: list[Future[Outcome | None]] = []
    threads = ThreadPoolExecutor(max_concurrency, thread_name_prefix="healthex")
    try:
        while True:
            going_on = not (enough.is_set() or own_stop.is_set())
            batch = list(islice(ids, places - len(handed_over))) if going_on else []
            if checkpoint is not None:
                checkpoint(batch)
            handed_over += [threads.submit(ask_unless_enough, patient_id) for patient_id in batch]
            if not handed_over:
                return
            done = wait(handed_over, return_when=FIRST_COMPLETED).done
            ended = [each for each in handed_over if each in done]
            handed_over = [each for each in handed_over if each not in done]
            outcomes = [outcome for outcome in (each.result() for each in ended) if outcome is not None]
            # All before any is yielded: nobody is to be asked while the caller looks at the first.
            if any([fuse.blows(outcome) for outcome in outcomes]):  # noqa: C419
                enough.set()
            yield from outcomes
    finally:
        own_stop.set()
        threads.shutdown(wait=True, cancel_futures=True)
        stop.release(own_stop)


def _never_sent(outcome: Outcome) -> bool:
    return isinstance(outcome, PatientUpdateFailure) and isinstance(outcome.error, HealthExConnectionError)


class _Fuse:
    """Blows when asking on would do no good."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._blown = False

    def blows(self, outcome: Outcome) -> bool:
        reason = self._reason(outcome)
        if reason and not self._blown:
            self._blown = True
            log.error("No more patients are asked for: %s", reason)
        return self._blown

    def _reason(self, outcome: Outcome) -> str:
        if isinstance(outcome, PatientUpdate) or isinstance(outcome.error, _ABOUT_ONE):
            self._in_a_row = 0
            return ""
        self._in_a_row += 1
        error = outcome.error
        if isinstance(error, _FOR_EVERYONE):
            return f"it would be the same for all. {error}"
        if isinstance(error, HealthExApiError) and (error.retry_after or 0) > retries.PATIENCE:
            return f"HealthEx asks to come back in {error.retry_after:g} s. {error}"
        if self._in_a_row >= GIVE_UP_AFTER:
            return f"{self._in_a_row} in a row got no readable answer. The last one: {error}"
        return ""
