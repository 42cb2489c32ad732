"""Updates of many patients: how many requests at once, when no more are made, and which may be in flight."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from airflow_provider_healthex.client import retries
from airflow_provider_healthex.client.calls import identifier
from airflow_provider_healthex.client.cancel import CancelEvent, Cancelled
from airflow_provider_healthex.client.models import PatientUpdate, PatientUpdateFailure
from airflow_provider_healthex.client.retries import FailedTry
from airflow_provider_healthex.client.sender import InFlight
from airflow_provider_healthex.client.transport import POOL_SIZE
from airflow_provider_healthex.exceptions import (
    HealthExApiError,
    HealthExAuthenticationError,
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExError,
    HealthExNotFoundError,
    HealthExPermissionError,
    HealthExRequestError,
    HealthExTokenError,
)

log = logging.getLogger(__name__)

#: The circuit breaker opens after so many patients in a row without a readable answer. Each had all its tries: going
#: on would take hours, or make thousands ambiguous.
FAILURES_IN_A_ROW = 20

#: Errors that every patient would get.
_OF_EVERY_PATIENT = (
    HealthExAuthenticationError,
    HealthExPermissionError,
    HealthExTokenError,
    HealthExConfigurationError,
)
#: Readable answers about one patient.
_OF_ONE_PATIENT = (HealthExNotFoundError, HealthExRequestError)

#: Receives the patients whose request may be in flight, before one is added and after one was rejected.
#:
#: The one place where this core calls up into its caller. A return value comes too late: if the process is killed
#: while a request is in flight, only what was stored before the request can prevent a second, billed one.
Checkpoint = Callable[[Sequence[str]], None]
Result = PatientUpdate | PatientUpdateFailure
#: Requests one patient; each try is sent within the context. Raises `HealthExError`.
Request = Callable[[str, CancelEvent, InFlight], PatientUpdate]


@contextmanager
def checkpointed(patient_id: str, checkpoint: Checkpoint) -> Iterator[None]:
    """Call the checkpoint before a try for one patient, and after it if it was rejected."""
    checkpoint([patient_id])
    try:
        yield
    except FailedTry as failed:
        if not failed.may_have_started:
            checkpoint([])
        raise


def distinct(patient_ids: Iterable[str]) -> list[str]:
    """Return the ids, each checked and once, in their order."""
    if isinstance(patient_ids, (str, bytes, Mapping)) or not isinstance(patient_ids, Iterable):
        raise HealthExConfigurationError(f"patient_ids must be a list of ids (got {type(patient_ids).__name__})")
    checked = (identifier(f"patient_ids[{index}]", patient_id) for index, patient_id in enumerate(patient_ids))
    return list(dict.fromkeys(checked))


def check_concurrency(max_concurrency: object) -> int:
    """Return the number of requests at once, if the connection pool is large enough."""
    if type(max_concurrency) is int and 1 <= max_concurrency <= POOL_SIZE:
        return max_concurrency
    raise HealthExConfigurationError(
        f"max_concurrency must be a whole number from 1 to {POOL_SIZE} (got {max_concurrency!r})"
    )


def each_update(
    project_id: str,
    patient_ids: Iterable[str],
    request: Request,
    max_concurrency: int,
    cancelled: CancelEvent,
    checkpoint: Checkpoint | None,
) -> Iterator[Result]:
    """Yield the result of each patient as it comes. Patients that are never yielded were not requested."""
    with cancelled.part() as part:
        yield from _Dispatcher(project_id, iter(patient_ids), request, max_concurrency, part, checkpoint).run()


@dataclass(eq=False)
class _ReadyTry:
    """A try that waits for nothing but the checkpoint."""

    patient_id: str
    admitted: bool = False
    decided: threading.Event = field(default_factory=threading.Event)


class _Dispatcher:
    """
    Threads that request patients, and the caller's thread, which calls the checkpoint.

    A thread goes through every wait (the rate limit, a token, backoff), and then reports that its patient is ready.
    One checkpoint adds all ready patients, and their requests are sent at once. So it serves many requests, and the
    patients it has are in flight, or will be within about the time of a checkpoint.

    The threads report events as functions, which the caller's thread calls: it alone changes the attributes.
    """

    def __init__(
        self,
        project_id: str,
        patient_ids: Iterator[str],
        request: Request,
        max_concurrency: int,
        cancelled: CancelEvent,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._project_id = project_id
        self._ids = patient_ids
        self._request = request
        self._checkpoint = checkpoint
        self._max_concurrency = max_concurrency
        # A few more threads than requests at once: during a checkpoint, a request that ends has a successor.
        self._threads = max_concurrency + max(1, max_concurrency // 4)
        self._slots = threading.Semaphore(max_concurrency)
        self._cancelled = cancelled
        self._closed = threading.Event()
        self._breaker = _CircuitBreaker()
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ready: list[_ReadyTry] = []
        self._results: list[Result] = []
        self._in_flight: dict[str, None] = {}
        self._sending = 0
        self._running = 0
        self._checkpoint_seconds = 0.0
        self._try_seconds = 0.0
        self._checkpoint_error: Exception | None = None

    def run(self) -> Iterator[Result]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="healthex")
        try:
            while self._submit(pool):
                self._events.get()()
                while not self._events.empty():
                    self._events.get()()
                # All results are counted before any is yielded: no request may leave while the caller handles one.
                results, self._results = self._results, []
                yield from results
                self._admit()
            if self._checkpoint_error is not None:
                raise self._checkpoint_error
        finally:
            self._cancelled.set()
            self._closed.set()
            self._cancel_ready()
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor) -> bool:
        """Give the free threads patients; return whether any thread is at work."""
        if not self._is_over():
            for patient_id in islice(self._ids, self._threads - self._running):
                self._running += 1
                pool.submit(self._request_one, patient_id).add_done_callback(partial(self._report_end, patient_id))
        return self._running > 0

    def _is_over(self) -> bool:
        return self._breaker.is_open.is_set() or self._cancelled.is_set()

    def _on_try_end(self, patient_id: str, seconds: float, may_have_started: bool) -> None:
        self._sending -= 1
        self._try_seconds = _smooth(self._try_seconds, seconds)
        if not may_have_started:
            self._in_flight.pop(patient_id, None)

    def _on_end(self, patient_id: str, future: Future[Result | None]) -> None:
        self._running -= 1
        self._in_flight.pop(patient_id, None)
        result = future.result()
        if result is not None:
            self._results.append(result)
            self._breaker.count(result)

    def _admit(self) -> None:
        """Call the checkpoint with the patients that may be in flight from now on, and let their requests go."""
        if self._cancelled.is_set():
            self._cancel_ready()
        room = max(0, self._max_concurrency + self._ahead() - self._sending)
        admitted = self._ready[:room]
        # The patients that this adds come last.
        in_flight = {**self._in_flight, **dict.fromkeys(each.patient_id for each in admitted)}
        if not self._call_checkpoint(tuple(in_flight)):
            return
        self._in_flight = in_flight
        self._sending += len(admitted)
        for each in admitted:
            each.admitted = True
            each.decided.set()
        # Only now: whatever interrupts this thread, those that wait are known and can be cancelled.
        del self._ready[: len(admitted)]

    def _call_checkpoint(self, in_flight: Sequence[str]) -> bool:
        """Return whether the patients are stored; if not, no more are requested, and those in flight are waited for."""
        if self._checkpoint is None or self._checkpoint_error is not None:
            return self._checkpoint_error is None
        began = time.monotonic()
        try:
            self._checkpoint(in_flight)
        except Exception as error:
            self._checkpoint_error = error
            self._cancelled.set()
            self._cancel_ready()
            return False
        self._checkpoint_seconds = _smooth(self._checkpoint_seconds, time.monotonic() - began)
        return True

    def _ahead(self) -> int:
        """Return how many requests end during one checkpoint: none if requests take long."""
        if not self._try_seconds:
            return 0
        ending = round(self._max_concurrency * self._checkpoint_seconds / self._try_seconds)
        return min(ending, self._threads - self._max_concurrency)

    def _cancel_ready(self) -> None:
        for each in self._ready:
            each.decided.set()
        self._ready.clear()

    # In the threads

    def _report_end(self, patient_id: str, future: Future[Result | None]) -> None:
        self._events.put(partial(self._on_end, patient_id, future))

    def _request_one(self, patient_id: str) -> Result | None:
        """Return None if the patient was not requested."""
        if self._is_over():
            return None
        try:
            return self._request(patient_id, self._cancelled, partial(self._send_one, patient_id))
        except HealthExError as error:
            if isinstance(error, HealthExConnectionError) and self._cancelled.is_set():
                return None
            return PatientUpdateFailure(self._project_id, patient_id, error)

    @contextmanager
    def _send_one(self, patient_id: str) -> Iterator[None]:
        ready = _ReadyTry(patient_id)
        self._events.put(partial(self._ready.append, ready))
        while not ready.decided.wait(1):
            if self._closed.is_set():  # the caller's thread ended before it could see this one
                raise Cancelled
        if not ready.admitted:
            raise Cancelled
        began, may_have_started = time.monotonic(), False
        try:
            with self._slots:
                if self._cancelled.is_set():
                    raise Cancelled
                began, may_have_started = time.monotonic(), True
                yield
        except FailedTry as failed:
            may_have_started = failed.may_have_started
            raise
        finally:
            seconds = time.monotonic() - began
            self._events.put(partial(self._on_try_end, patient_id, seconds, may_have_started))


def _smooth(average: float, value: float) -> float:
    return value if not average else 0.8 * average + 0.2 * value


class _CircuitBreaker:
    """Opens when further requests would only fail."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self._in_a_row = 0

    def count(self, result: Result) -> None:
        reason = self._reason(result)
        if reason and not self.is_open.is_set():
            self.is_open.set()
            log.error("No more patients are requested: %s", reason)

    def _reason(self, result: Result) -> str:
        if isinstance(result, PatientUpdate) or isinstance(result.error, _OF_ONE_PATIENT):
            self._in_a_row = 0
            return ""
        self._in_a_row += 1
        error = result.error
        if isinstance(error, _OF_EVERY_PATIENT):
            return f"every request would get the same answer. {error}"
        if isinstance(error, HealthExApiError) and (error.retry_after or 0) > retries.LONGEST_WAIT:
            return f"HealthEx wants no requests for {error.retry_after:g} s. {error}"
        if self._in_a_row >= FAILURES_IN_A_ROW:
            return f"{self._in_a_row} in a row got no readable answer. The last one: {error}"
        return ""
