"""Requests for many patients: how many at once, when no more of them, and who may be in flight at any moment."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from airflow_provider_healthex.client import retries
from airflow_provider_healthex.client.calls import identifier
from airflow_provider_healthex.client.models import PatientUpdate, PatientUpdateFailure
from airflow_provider_healthex.client.rate_limit import Stop, Stopped
from airflow_provider_healthex.client.retries import Failure
from airflow_provider_healthex.client.transport import POOL_SIZE, Answer
from airflow_provider_healthex.exceptions import (
    HealthExApiError,
    HealthExAuthenticationError,
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExNotFoundError,
    HealthExPermissionError,
    HealthExRequestError,
    HealthExTokenError,
    HealthExUpdateAmbiguousError,
)

log = logging.getLogger(__name__)

#: After this many patients in a row without a readable answer, the service is taken to be down. Each was tried for as
#: long as is sensible: to try the others too would take hours, or make thousands ambiguous.
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
#: Is called with the patients whose request may be on its way: before one is added, and after one was rejected.
Checkpoint = Callable[[Sequence[str]], None]
#: Sends one try of a request, and returns what came back.
Send = Callable[[], Answer | Failure]
#: Runs around the sending of one try, after every wait that precedes it.
Around = Callable[[Send], Answer | Failure]


def may_have_started(outcome: Answer | Failure) -> bool:
    """Whether a try may have started an update: it was accepted, or nobody knows."""
    return not isinstance(outcome, Failure) or isinstance(outcome.error, HealthExUpdateAmbiguousError)


def checkpointed(patient_id: str, checkpoint: Checkpoint) -> Around:
    """Call the checkpoint before each try for this patient, and after each that was surely rejected."""

    def around(send: Send) -> Answer | Failure:
        checkpoint([patient_id])
        outcome = send()
        if not may_have_started(outcome):
            checkpoint([])
        return outcome

    return around


def distinct(patient_ids: Iterable[str], max_concurrency: int) -> list[str]:
    """
    Return the ids, each once, in the order they were given.

    :raises HealthExConfigurationError: an id can't be one, or the concurrency can't be used.
    """
    if isinstance(patient_ids, (str, bytes, Mapping)) or not isinstance(patient_ids, Iterable):
        raise HealthExConfigurationError(f"patient_ids must be a list of ids (got {type(patient_ids).__name__})")
    check_concurrency(max_concurrency)
    checked = (identifier(f"patient_ids[{index}]", patient_id) for index, patient_id in enumerate(patient_ids))
    return list(dict.fromkeys(checked))


def check_concurrency(max_concurrency: object) -> int:
    """Return how many requests may be in flight, if the connection pool holds that many."""
    if type(max_concurrency) is int and 1 <= max_concurrency <= POOL_SIZE:
        return max_concurrency
    raise HealthExConfigurationError(
        f"max_concurrency must be a whole number from 1 to {POOL_SIZE} (got {max_concurrency!r})"
    )


def each_update(
    patient_ids: Iterable[str],
    request: Callable[[str, Stop, Around], Outcome],
    max_concurrency: int,
    stop: Stop,
    checkpoint: Checkpoint | None,
) -> Iterator[Outcome]:
    """
    Yield the outcome of each patient, as it comes. Patients that are never yielded were not requested.

    :param patient_ids: are taken only as there are threads to request them.
    :param request: requests one patient and doesn't raise what `exceptions` has; waits no longer once the event is
        set; runs every try through the function it is given.
    :param max_concurrency: requests at once.
    :param stop: once set, no more patients are requested.
    :param checkpoint: as `HealthExClient.update_patients` has it.
    """
    # A generator, so that nothing is begun before the first is wanted.
    yield from _Dispatcher(patient_ids, request, max_concurrency, stop, checkpoint).run()


@dataclass
class _Ready:
    """A try that waits for nothing but to be written down."""

    patient_id: str
    admitted: bool = False
    decided: threading.Event = field(default_factory=threading.Event)

    def decide(self, *, admitted: bool) -> None:
        self.admitted = admitted
        self.decided.set()


@dataclass(frozen=True)
class _Sent:
    """A try that has ended, after so many seconds."""

    patient_id: str
    seconds: float
    may_have_started: bool


@dataclass(frozen=True)
class _Ended:
    """A patient whose tries have ended."""

    patient_id: str
    future: Future[Outcome | None]


class _Dispatcher:
    """
    Threads that request patients, and the caller's thread, which writes down who may be in flight.

    A thread goes through every wait (its turn, a token, backoff) and then reports that it is ready. Those who are
    ready are written down together, and sent at once. So one write serves many requests, and at any moment those
    written down are in flight, or will be within about the time of a write.
    """

    def __init__(
        self,
        patient_ids: Iterable[str],
        request: Callable[[str, Stop, Around], Outcome],
        max_concurrency: int,
        stop: Stop,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._ids = iter(patient_ids)
        self._request = request
        self._checkpoint = checkpoint
        self._max_concurrency = max_concurrency
        # A few more threads than requests at once: while the checkpoint writes, a request that ends has a successor.
        self._threads = max_concurrency + max(1, max_concurrency // 4)
        self._slots = threading.Semaphore(max_concurrency)
        self._caller_stop, self._stop = stop, stop.share()
        self._enough, self._closed = threading.Event(), threading.Event()
        self._breaker = _CircuitBreaker()
        self._news: queue.SimpleQueue[_Ready | _Sent | _Ended] = queue.SimpleQueue()
        self._ready: list[_Ready] = []
        self._in_flight: dict[str, None] = {}
        self._sending = 0
        self._running = 0
        self._write_seconds = 0.0
        self._send_seconds = 0.0
        self._checkpoint_error: Exception | None = None

    def run(self) -> Iterator[Outcome]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="healthex")
        try:
            while self._submit(pool):
                # All outcomes before any is yielded: no request is to leave while the caller handles the first.
                yield from self._outcomes()
                self._admit()
            if self._checkpoint_error is not None:
                raise self._checkpoint_error
        finally:
            self._stop.set()
            self._closed.set()
            self._refuse(self._ready)
            pool.shutdown(wait=True, cancel_futures=True)
            self._caller_stop.release(self._stop)

    def _submit(self, pool: ThreadPoolExecutor) -> bool:
        """Give the free threads work; return whether any has some."""
        if not (self._enough.is_set() or self._stop.is_set()):
            for patient_id in islice(self._ids, self._threads - self._running):
                self._running += 1
                future = pool.submit(self._request_one, patient_id)
                future.add_done_callback(lambda done, who=patient_id: self._news.put(_Ended(who, done)))  # type: ignore[misc]
        return self._running > 0

    def _outcomes(self) -> list[Outcome]:
        """Wait until something has happened, and return the outcomes there are."""
        outcomes = self._take(self._news.get())
        while not self._news.empty():
            outcomes += self._take(self._news.get())
        if any([self._breaker.opens(outcome) for outcome in outcomes]):  # noqa: C419
            self._enough.set()
        return outcomes

    def _take(self, news: _Ready | _Sent | _Ended) -> list[Outcome]:
        if isinstance(news, _Ready):
            self._ready.append(news)
            return []
        if isinstance(news, _Sent):
            self._sending -= 1
            self._send_seconds = _smooth(self._send_seconds, news.seconds)
            if not news.may_have_started:
                self._in_flight.pop(news.patient_id, None)
            return []
        self._running -= 1
        self._in_flight.pop(news.patient_id, None)
        outcome = news.future.result()
        return [] if outcome is None else [outcome]

    def _admit(self) -> None:
        """Write down who may be in flight from now on, and let them go."""
        if self._stop.is_set():
            self._refuse(self._ready)
            self._ready = []
        room = max(0, self._max_concurrency + self._ahead() - self._sending)
        admitted = self._ready[:room]
        # The patients that this adds come last.
        in_flight = {**self._in_flight, **dict.fromkeys(each.patient_id for each in admitted)}
        if not self._write(tuple(in_flight)):
            return
        self._in_flight = in_flight
        self._sending += len(admitted)
        for each in admitted:
            each.decide(admitted=True)
        # Only now: whatever interrupts this thread, those that wait are known and can be refused.
        del self._ready[: len(admitted)]

    def _write(self, in_flight: Sequence[str]) -> bool:
        """Call the checkpoint; where it fails no more patients are requested, and those in flight are waited for."""
        if self._checkpoint is None or self._checkpoint_error is not None:
            return self._checkpoint_error is None
        began = time.monotonic()
        try:
            self._checkpoint(in_flight)
        except Exception as error:
            self._checkpoint_error = error
            self._stop.set()
            self._refuse(self._ready)
            self._ready = []
            return False
        self._write_seconds = _smooth(self._write_seconds, time.monotonic() - began)
        return True

    def _ahead(self) -> int:
        """As many requests more as end while one write lasts: none where requests take long."""
        if not self._send_seconds:
            return 0
        return min(
            round(self._max_concurrency * self._write_seconds / self._send_seconds),
            self._threads - self._max_concurrency,
        )

    @staticmethod
    def _refuse(ready: Iterable[_Ready]) -> None:
        for each in ready:
            each.decide(admitted=False)

    # In the threads

    def _request_one(self, patient_id: str) -> Outcome | None:
        if self._enough.is_set() or self._stop.is_set():
            return None
        outcome = self._request(patient_id, self._stop, lambda send: self._send(patient_id, send))
        return None if self._stop.is_set() and _never_sent(outcome) else outcome

    def _send(self, patient_id: str, send: Send) -> Answer | Failure:
        ready = _Ready(patient_id)
        self._news.put(ready)
        while not ready.decided.wait(1):
            if self._closed.is_set():  # the caller's thread ended before it could see this one
                raise Stopped
        if not ready.admitted:
            raise Stopped
        began, started = time.monotonic(), False
        try:
            with self._slots:
                if self._stop.is_set():
                    raise Stopped
                began, started = time.monotonic(), True
                outcome = send()
                started = may_have_started(outcome)
                return outcome
        finally:
            self._news.put(_Sent(patient_id, time.monotonic() - began, started))


def _smooth(average: float, value: float) -> float:
    return value if not average else 0.8 * average + 0.2 * value


def _never_sent(outcome: Outcome) -> bool:
    return isinstance(outcome, PatientUpdateFailure) and isinstance(outcome.error, HealthExConnectionError)


class _CircuitBreaker:
    """Opens when more requests would do no good."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._open = False

    def opens(self, outcome: Outcome) -> bool:
        reason = self._reason(outcome)
        if reason and not self._open:
            self._open = True
            log.error("No more patients are requested: %s", reason)
        return self._open

    def _reason(self, outcome: Outcome) -> str:
        if isinstance(outcome, PatientUpdate) or isinstance(outcome.error, _ABOUT_ONE):
            self._in_a_row = 0
            return ""
        self._in_a_row += 1
        error = outcome.error
        if isinstance(error, _FOR_EVERYONE):
            return f"every request would get the same answer. {error}"
        if isinstance(error, HealthExApiError) and (error.retry_after or 0) > retries.PATIENCE:
            return f"HealthEx asks for {error.retry_after:g} s without requests. {error}"
        if self._in_a_row >= GIVE_UP_AFTER:
            return f"{self._in_a_row} in a row got no readable answer. The last one: {error}"
        return ""
