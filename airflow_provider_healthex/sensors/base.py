"""Waiting as Airflow does it: poke, reschedule and deferred mode, deadlines, failures, and how a wait concludes."""

from __future__ import annotations

import tempfile
import time
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import IO, TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, cast

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    Asset,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_healthex.arguments import at_least, boolean
from airflow_provider_healthex.delivery import Plan, StoredObject, Waiting
from airflow_provider_healthex.delivery.plan import alone
from airflow_provider_healthex.delivery.schedule import PokeSchedule, WaitingLog
from airflow_provider_healthex.exceptions import (
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExError,
    HealthExPatientActionNeeded,
)
from airflow_provider_healthex.sensors.awaited import Awaited
from airflow_provider_healthex.sensors.checks import REFUSED_ARGUMENTS, refuse_arguments, refused
from airflow_provider_healthex.sensors.collect import collect
from airflow_provider_healthex.sensors.compat import AirflowRescheduleException, first_reschedule, try_start
from airflow_provider_healthex.sensors.memory import PokeMemory
from airflow_provider_healthex.triggers.base import ARRIVED, REFUSED, TIMED_OUT, arrived_from_text

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

T = TypeVar("T")

#: Seconds that a triggerer has for its last poke before Airflow ends the wait.
DEFERRAL_GRACE = 60.0

_MANIFEST_IN_MEMORY = 8 * 1024 * 1024  # bytes


class ArrivalSensor(BaseSensorOperator):
    """
    The base of the sensors: subclasses make the `Awaited` of their arguments.

    Poke, reschedule and deferred mode decide alike, with the same code. ``soft_fail`` covers the timeout alone.
    """

    #: Arguments that are refused, and why.
    refused_arguments: ClassVar[Mapping[str, str]] = REFUSED_ARGUMENTS
    trigger_class: type[BaseTrigger]
    deferral_grace = DEFERRAL_GRACE
    #: Keys of the result that asset events of outlets get: counts and times, neither keys nor ids.
    event_keys: ClassVar[tuple[str, ...]]
    deferrable: bool
    wildcard_match: bool

    def __init__(self, **kwargs: Any) -> None:
        for name, reason in self.refused_arguments.items():
            if kwargs.pop(name, None):
                raise refused(self, name, reason)
        super().__init__(**kwargs)
        self._awaited: Any = None  # an Awaited
        self._memory: PokeMemory | None = None
        self._objects: dict[str, StoredObject] = {}
        self._is_first_poke = False
        self._schedule: PokeSchedule | None = None
        self._limit = "timeout"  # the argument that the deadline comes from
        self._lines: WaitingLog | None = None
        self._last_poke = "none"
        self._own_execution_timeout: timedelta | None = None

    # At parse time

    def _check_arguments(self) -> None:
        """Refuse at parse time what no rendering can mend; the last step of a constructor."""
        refuse_arguments(self)
        boolean("deferrable", self.deferrable)
        boolean("wildcard_match", self.wildcard_match)
        at_least("timeout", self.timeout, 0, " s")
        at_least("poke_interval", self.poke_interval, 0, " s")
        # A mapped instance is made on a worker, where an error would be retried: execute finds the same, finally.
        if not getattr(self, "_BaseOperator__from_mapped", False):
            self._check_literals()

    @abstractmethod
    def _check_literals(self) -> None:
        """Refuse what is wrong with the literal arguments, whatever the templates among them may become."""

    # On a worker

    @abstractmethod
    def _await(self, since: str | None) -> Awaited:
        """
        Check the rendered arguments and return what is awaited.

        :param since: as the wait's first process rendered it.
        """

    def _min_fraction(self) -> tuple[float, float | None]:
        """Return the fraction of the patients that is enough, and the seconds after which it is."""
        return 1.0, None

    def pre_execute(self, context: Any) -> None:
        """Leave a resumed task the time to conclude: Airflow 2.11 would fail it first, and not say why."""
        super().pre_execute(context)
        ti = context["ti"]
        if self.execution_timeout is None or hasattr(ti, "get_first_reschedule_date"):
            return
        if ti.next_method and ti.start_date:
            grace = datetime.now(timezone.utc) - ti.start_date + timedelta(seconds=self.deferral_grace)
            self._own_execution_timeout = self.execution_timeout
            self.execution_timeout = max(self.execution_timeout, grace)

    def execute(self, context: Context) -> Any:
        """Wait, here or on the triggerer."""
        with self._failures():
            refuse_arguments(self)
            schedule = self._prepare(context)
            while True:
                began = time.time()
                found = self.poke(context)
                if found:
                    return found.xcom_value
                now = time.time()
                if began >= schedule.deadline:
                    return self._at_deadline(self._awaited.wait.arrived, context)
                if self.deferrable:
                    self._defer_to_trigger(schedule)
                if self.reschedule:
                    raise AirflowRescheduleException(
                        datetime.fromtimestamp(now, timezone.utc) + timedelta(seconds=schedule.pause(now))
                    )
                time.sleep(schedule.pause(now))

    def poke(self, context: Context) -> PokeReturnValue:
        """
        Poke once.

        :raises HealthExConfigurationError: where the arguments can't be used, or for a permanent error.
        :raises HealthExPatientActionNeeded: with ``on_patient_action="fail"``, where the patient needs to act.
        """
        if self._awaited is None:
            self._prepare(context)
        awaited: Awaited = self._awaited
        self._objects = {}
        waiting = self._recall() or self._run(awaited.wait.poke(self._keep if awaited.needs_objects else None))
        if waiting is None or self._is_enough(time.time()):
            return PokeReturnValue(True, self._finish(awaited.wait.arrived, context))
        self._last_poke = waiting.reason
        self._give_hints(waiting)
        if self._lines:
            self._lines.note(waiting.reason)
        if self._memory:
            self._memory.keep()
        return PokeReturnValue(False)

    def _recall(self) -> Waiting | None:
        """Continue with what an earlier process of this wait kept; without it, this would be taken for the first."""
        try:
            if self._memory and self._memory.recall():
                self._awaited.storage.listed = True
        except Exception as error:
            return Waiting(f"Airflow's task state store did not answer ({type(error).__name__})")
        return None

    def _keep(self, index: int, objects: Sequence[StoredObject]) -> None:
        self._objects.update({one.key: one for one in objects})

    def _is_enough(self, now: float) -> bool:
        enough = self._schedule is not None and self._schedule.is_enough(now)
        return enough and len(self._awaited.wait.arrived) >= self._awaited.least

    def _give_hints(self, waiting: Waiting) -> None:
        """At the first poke, log why nothing matches a path: a typing error would otherwise wait until the timeout."""
        if not self._is_first_poke:
            return
        self._is_first_poke = False
        awaited: Awaited = self._awaited
        for position in waiting.unmatched:
            steps, hint = awaited.storage.hint(awaited.wait.targets[0][position]), None
            with suppress(HealthExConfigurationError):  # it is no reason to fail that a hint can't be had
                hint = self._run(alone(steps)) if steps is not None else None
            if isinstance(hint, str):
                self.log.warning(hint)

    def _run(self, plan: Plan[T]) -> T | Waiting:
        """Make a plan's requests; Airflow's own trouble with a connection is as transient as the storage's."""
        try:
            found: T | Waiting = self._awaited.storage.run(plan)
        except HealthExConnectionError as error:
            return Waiting(str(error))
        return found

    def execute_complete(
        self,
        context: Context,
        event: dict[str, Any] | None = None,
        deadline: float | None = None,
        since: str | None = None,
    ) -> Any:
        """Conclude what the triggerer saw; without a deadline, as `dag.test` resumes, the wait begins anew."""
        with self._failures():
            status, message = _read_event(event)
            assert event is not None
            if status == REFUSED:
                raise HealthExConfigurationError(message)
            schedule = self._prepare(context, deadline=deadline, since=since)
            self._last_poke = message
            awaited: Awaited = self._awaited
            arrived = arrived_from_text(event["missing"], len(awaited.wait.targets))
            self._restore(event.get("listing"))
            if status == TIMED_OUT:
                return self._at_deadline(arrived, context)
            late = time.time() >= schedule.deadline
            result = self._finish(arrived, context, least=len(arrived), may_wait=True)
            if result is None:
                self.log.warning("The worker doesn't see what the triggerer saw; waiting again: %s", self._last_poke)
                return self._at_deadline([], context) if late else self._defer_to_trigger(schedule)
            return result

    def _restore(self, listing: Mapping[str, Any] | None) -> None:
        """Continue with what another process of this wait saw, which had access then."""
        if listing:
            self._awaited.wait.listing.restore(listing)
            self._awaited.storage.listed = True
            self._memory = None  # the event knows more

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume without Airflow's ``soft_fail``, which would turn every failure into a skip, not just a timeout."""
        if next_method == "__fail__" and "timeout" in str((next_kwargs or {}).get("error", "")).lower():
            with self._failures():
                return self._unreported(context)
        return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)

    def _unreported(self, context: Context) -> Any:
        """Poke once more where Airflow ended the deferral, and no trigger: what has arrived at the deadline counts."""
        self._prepare(context)
        found = self.poke(context)
        if found:
            return found.xcom_value
        if self._limit == "timeout":  # Airflow 2.11 ends a deferral at the execution_timeout itself
            self._last_poke += ". No triggerer reported until the deadline: is one running?"
        return self._at_deadline(self._awaited.wait.arrived, context)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """End the task as its kind of failure wants: finally, or with Airflow's retries."""
        try:
            yield
        except (HealthExConfigurationError, HealthExPatientActionNeeded) as error:
            # Neither a retry nor soft_fail: what waiting can't mend must be seen.
            raise AirflowFailException(str(error)) from error
        except AirflowTaskTimeout as error:  # Airflow's own alarm doesn't name the limit
            if "execution_timeout" in str(error):
                raise
            raise AirflowTaskTimeout(self._execution_timeout_message(self._last_poke)) from error

    def _prepare(self, context: Context, *, deadline: float | None = None, since: str | None = None) -> PokeSchedule:
        """
        Check the arguments, now that they are rendered, and work out the wait's moments.

        :param deadline: of the wait that goes on here, if one does.
        :param since: the moment that the wait's first process counted from.
        """
        now = time.time()
        started = try_started = now
        rescheduled = None
        if self.reschedule and not self.deferrable:
            rescheduled = first_reschedule(context)
            started = rescheduled or now
            try_started = try_start(context, started)
        ends = {"timeout": started + self.timeout}
        limit = self._own_execution_timeout or self.execution_timeout
        if limit is not None:
            ends["execution_timeout"] = try_started + limit.total_seconds()
        self._limit = min(reversed(ends), key=ends.__getitem__)
        if deadline is not None:  # both began when the wait did
            started, ends[self._limit] = deadline - (ends[self._limit] - now), deadline
        _, enough_after = self._min_fraction()
        schedule = self._schedule = PokeSchedule(
            started=started,
            deadline=ends[self._limit],
            poke_interval=self.poke_interval,
            exponential_backoff=bool(self.exponential_backoff),
            max_wait=self.max_wait.total_seconds() if self.max_wait else None,
            enough_at=None if enough_after is None else started + enough_after,
        )
        self._is_first_poke = deadline is None and rescheduled is None
        # Whether an earlier poke of a rescheduled sensor had listed isn't known: it was another process's.
        self._awaited = self._await(since)
        self._memory = PokeMemory.of(context, self._awaited.wait, self.log)
        self._lines = WaitingLog(self.log, self._awaited.name, schedule, self._limit)
        return schedule

    def _defer_to_trigger(self, schedule: PokeSchedule) -> NoReturn:
        awaited: Awaited = self._awaited
        left = max(0, schedule.deadline - time.time())
        trigger_class: Any = self.trigger_class
        self.defer(
            trigger=trigger_class(
                expectation=awaited.wait.expectation.to_dict(),
                waiting_for=awaited.name,
                limit=self._limit,
                least=awaited.least,
                listing=awaited.wait.listing.to_dict(),
                **asdict(schedule),
                **awaited.storage.trigger_arguments(),
            ),
            method_name="execute_complete",
            kwargs={"deadline": schedule.deadline, **({"since": awaited.since} if awaited.since else {})},
            timeout=timedelta(seconds=left + self.poke_interval + self.deferral_grace),
        )
        raise AssertionError("defer() always raises")

    def _at_deadline(self, arrived: Collection[int], context: Context) -> Any:
        """Conclude that the wait is over, by the limit that ended it."""
        awaited: Awaited = self._awaited
        if self._limit == "execution_timeout":
            raise AirflowTaskTimeout(self._execution_timeout_message(self._last_poke))
        # The timeout of a part of a cohort is no failure.
        result = self._finish(arrived, context, least=awaited.least) if len(arrived) >= awaited.least else None
        if result is not None:
            return result
        message = f"{self._timeout_verdict(arrived)} under {awaited.place}; last poke: {self._last_poke}"
        if self.soft_fail:
            raise AirflowSkipException(message)
        raise AirflowSensorTimeout(message)

    def _timeout_verdict(self, arrived: Collection[int]) -> str:
        return f"No delivery within {self.timeout:g} s"

    def _execution_timeout_message(self, reason: str) -> str:
        limit = self._own_execution_timeout or self.execution_timeout or timedelta()
        place = self._awaited.place if self._awaited is not None else "the delivery"
        verdict = f"execution_timeout of {limit.total_seconds():g} s exceeded"
        return f"{verdict} while waiting for {place}; last poke: {reason}"

    def _finish(
        self, arrived: Collection[int], context: Context, *, least: int = 0, may_wait: bool = False
    ) -> dict[str, Any] | None:
        """
        Return the result for those who arrived, or None where fewer than ``least`` are still there.

        :param may_wait: whether None is possible, too, where they can't be listed right now.
        :raises HealthExError: they can't be listed right now; a retry of the task may.
        """
        awaited: Awaited = self._awaited
        arrivals = {index: awaited.wait.arrived[index] for index in arrived if index in awaited.wait.arrived}
        manifest = None
        with tempfile.SpooledTemporaryFile(_MANIFEST_IN_MEMORY) as file:
            lines = cast("IO[bytes]", file)
            # The event names only who arrived: all that the triggerer saw would be too much for the database.
            if awaited.manifest or len(arrivals) < len(arrived):
                found, self._objects = collect(awaited, arrived, lines, self._run, self.poke_interval)
                if isinstance(found, Waiting):
                    self._last_poke = found.reason
                    if may_wait:
                        return None
                    raise HealthExError(f"{found.reason}: the deliveries are there, and a retry of the task lists them")
                arrivals = found
            if len(arrivals) < least:
                self._last_poke = f"{len(arrivals):,} of {len(arrived):,} deliveries are still there"
                return None
            if awaited.manifest:
                lines.seek(0)
                awaited.storage.put(awaited.manifest, lines)
                manifest = awaited.storage.uri(awaited.manifest)
        objects = [self._objects[key] for key in sorted(self._objects)]
        result = awaited.result(arrivals, objects, manifest)
        self._inform_outlets(result, context)
        return result

    def _inform_outlets(self, result: Mapping[str, Any], context: Context) -> None:
        """Put some of the result into the asset events of the task's outlets."""
        for outlet in self.outlets or ():
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra.update({key: result[key] for key in self.event_keys})


def _read_event(event: Mapping[str, Any] | None) -> tuple[str, str]:
    status = event.get("status") if isinstance(event, Mapping) else None
    if status not in (ARRIVED, TIMED_OUT, REFUSED):
        raise HealthExError(f"The trigger failed ({event!r}): see its log. A retry waits again.")
    return str(status), str((event or {}).get("message") or "")
