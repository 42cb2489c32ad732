"""What waiting for deliveries has in common, wherever they land and for how many: modes, deadline, failures."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, cast

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    Asset,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_healthex.arguments import at_least, whole_number
from airflow_provider_healthex.client.models import UNRECOGNIZED
from airflow_provider_healthex.delivery import Kind, Target, Waiting
from airflow_provider_healthex.delivery.template import refuse_foreign_syntax
from airflow_provider_healthex.exceptions import (
    HealthExConfigurationError,
    HealthExError,
    HealthExPatientActionNeeded,
)
from airflow_provider_healthex.triggers.arrival import ARRIVED, REFUSED, TIMED_OUT, waiting_line

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

_BY_KIND = "what passes is waited for and what doesn't fails, in every mode; soft_fail skips a timeout"

#: Seconds that a triggerer has for its last look before Airflow ends the wait.
DEFERRAL_GRACE = 60.0


class Storage(Protocol):
    """Where deliveries land, as a worker reaches it."""

    @property
    def bucket(self) -> str | None:
        """The bucket's name, where it is one."""

    @property
    def title(self) -> str:
        """What messages call it."""

    def uri(self, key: str) -> str:
        """Return a key's URI."""

    def look(self, steps: Any) -> Any:
        """Take the steps of one look and return its verdict."""

    def put(self, key: str, body: bytes) -> None:
        """Write what is asked for by an argument."""

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what a trigger needs to look here."""


class Wait(Protocol):
    """One wait, resolved from rendered arguments."""

    @property
    def storage(self) -> Storage:
        """Where it looks."""

    @property
    def name(self) -> str:
        """What logs call it."""

    def look(self) -> Any:
        """Return the steps of one look; they end with a :class:`Waiting`, or else with what arrived."""

    def hint(self, unmatched: int) -> Any:
        """Return the steps that find out why nothing matches a path, by its position: a text or None; or None."""

    @property
    def place(self) -> str:
        """Where it looks, for messages."""

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what its trigger needs of it."""


class ArrivalSensor(BaseSensorOperator):
    """
    The frame of the sensors: subclasses say what they wait for and what they give.

    Poke, reschedule and deferred mode decide alike, with the same code. ``soft_fail`` covers the timeout alone.
    """

    #: Arguments that are refused, and why.
    refused_arguments: ClassVar[Mapping[str, str]] = {"silent_fail": _BY_KIND, "never_fail": _BY_KIND}
    trigger_class: type[BaseTrigger]
    deferral_grace = DEFERRAL_GRACE
    deferrable: bool

    def __init__(
        self, *, min_objects: int, marker: str | None, quiet_period: float, clock_skew: float, **kwargs: Any
    ) -> None:
        for name, reason in self.refused_arguments.items():
            if kwargs.pop(name, None):
                raise HealthExConfigurationError(f"{type(self).__name__} takes no {name}: {reason}.")
        super().__init__(**kwargs)
        self.min_objects = whole_number("min_objects", min_objects, 1)
        self.marker = _file_name("marker", marker)
        self.quiet_period = at_least("quiet_period", quiet_period, 0, " seconds")
        self.clock_skew = at_least("clock_skew", clock_skew, 0, " seconds")
        self._delivery: Any = None  # a Wait
        self._first = False
        self._deadline: float | None = None
        self._last_seen = "nothing"

    @abstractmethod
    def _resolve(self) -> Wait:
        """Check the rendered arguments and return what they say to wait for."""

    @abstractmethod
    def _conclude(self, verdict: Any, context: Context) -> dict[str, Any]:
        """Return the result for what arrived, as it was seen here."""

    @abstractmethod
    def _conclude_event(self, event: Mapping[str, Any], context: Context) -> dict[str, Any] | None:
        """Return the result for what the triggerer saw arrive, or None where it is not there any more."""

    def _at_deadline(self, event: Mapping[str, Any], context: Context) -> Any:
        """Conclude that the time is over."""
        self._time_out(str(event["message"]))

    def execute(self, context: Context) -> Any:
        """Wait, here or on the triggerer."""
        try:
            return self._execute(context)
        except (HealthExConfigurationError, HealthExPatientActionNeeded) as error:
            # Neither a retry nor soft_fail: what can't be mended by waiting must be seen.
            raise AirflowFailException(str(error)) from error

    def _execute(self, context: Context) -> Any:
        started = self._prepare(context)
        if self.deferrable:
            found = self.poke(context)
            return found.xcom_value if found else self._defer_until(started + self.timeout)
        try:
            return BaseSensorOperator.execute(self, context)
        except (AirflowSensorTimeout, AirflowSkipException):  # the latter with soft_fail
            return self._at_deadline({"message": self._last_seen}, context)

    def poke(self, context: Context) -> PokeReturnValue:
        """
        Look once.

        :raises HealthExConfigurationError: where the arguments can't be used, or the storage refuses for good.
        :raises HealthExPatientActionNeeded: with ``on_patient_action="fail"``, where the patient must act.
        """
        if self._delivery is None:
            self._prepare(context)
        delivery: Wait = self._delivery
        verdict = delivery.storage.look(delivery.look())
        if not isinstance(verdict, Waiting):
            return PokeReturnValue(True, self._conclude(verdict, context))
        self._last_seen = verdict.reason
        self._compare(delivery, verdict)
        left = self._deadline - time.time() if self._deadline else None
        self.log.info(waiting_line(delivery.name, verdict.reason, left))
        return PokeReturnValue(False)

    def _compare(self, delivery: Wait, verdict: Waiting) -> None:
        """At the first poke, say why nothing matches a path: a typing error would otherwise wait until the timeout."""
        if not self._first:
            return
        self._first = False
        for position in verdict.unmatched:
            steps, hint = delivery.hint(position), None
            with suppress(HealthExConfigurationError):  # it is no reason to fail that a hint can't be had
                hint = delivery.storage.look(steps) if steps is not None else None
            if isinstance(hint, str):
                self.log.warning(hint)

    def execute_complete(
        self, context: Context, event: dict[str, Any] | None = None, deadline: float | None = None
    ) -> Any:
        """Conclude what the triggerer saw; without a deadline, as `dag.test` resumes, the wait begins anew."""
        try:
            status, message = _read_event(event)
            assert event is not None
            if status == REFUSED:
                raise HealthExConfigurationError(message)
            started = self._prepare(context)
            if deadline is None:
                deadline = started + self.timeout
            if status == TIMED_OUT:
                return self._at_deadline(event, context)
            result = self._conclude_event(event, context)
            if result is None and time.time() >= deadline:
                return self._at_deadline({**event, "message": self._last_seen}, context)
            return result if result is not None else self._defer_until(deadline)
        except HealthExConfigurationError as error:
            raise AirflowFailException(str(error)) from error

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume without Airflow's ``soft_fail``, which would turn every failure into a skip, not just a timeout."""
        if next_method == "__fail__" and "timeout" in str((next_kwargs or {}).get("error", "")).lower():
            return self._unreported(context)
        return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)

    def _unreported(self, context: Context) -> Any:
        """Conclude that Airflow ended the deferral, as no trigger did."""
        self._time_out("no triggerer reported until the deadline; is one running?")

    def _prepare(self, context: Context) -> float:
        """Check the arguments, now that they are rendered, and return when this wait began (epoch seconds)."""
        rescheduled = _first_reschedule(context) if self.reschedule else None
        started = rescheduled.timestamp() if rescheduled else time.time()
        self._deadline = started + self.timeout
        self._first = rescheduled is None
        # Whether an earlier poke of a rescheduled sensor had listed isn't known: it was another process's.
        self._delivery = self._resolve()
        return started

    def _defer_until(self, deadline: float) -> NoReturn:
        delivery: Wait = self._delivery
        left = max(0, deadline - time.time())
        trigger_class: Any = self.trigger_class
        self.defer(
            trigger=trigger_class(
                waiting_for=delivery.name,
                deadline=deadline,
                poke_interval=self.poke_interval,
                **delivery.storage.trigger_arguments(),
                **delivery.trigger_arguments(),
            ),
            method_name="execute_complete",
            kwargs={"deadline": deadline},
            timeout=timedelta(seconds=left + self.poke_interval + self.deferral_grace),
        )
        raise AssertionError("defer() always raises")

    def _time_out(self, reason: str) -> NoReturn:
        place = f" in {self._delivery.place}" if self._delivery is not None else ""
        message = f"No delivery within {self.timeout:g} s{place}. Last seen: {reason}"
        if self.soft_fail:
            raise AirflowSkipException(message)
        raise AirflowSensorTimeout(message)

    def _get_next_poke_interval(self, started_at: Any, run_duration: Any, poke_count: int) -> float:
        """Never sleep past the deadline: there is one last look at it."""
        interval = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        return float(max(0, min(interval, self.timeout - run_duration())))

    def _tell_outlets(self, result: Mapping[str, Any], told: Sequence[str], context: Context) -> None:
        """Put some of the result into the asset events of the task's outlets."""
        for outlet in self.outlets or ():
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra.update({key: result[key] for key in told})

    def _check_manifest(self, name: str, manifest: Target, targets: Sequence[Target]) -> str:
        """Return where the manifest goes."""
        if manifest.kind is Kind.PREFIX or any(target.matches(manifest.prefix) for target in targets):
            raise HealthExConfigurationError(
                f"{name} is {manifest.template!r}; give a file's whole path, outside the path that is waited for, "
                "where it would be taken for delivered data."
            )
        return manifest.prefix

    def _check_kind(self, target: Target) -> None:
        """Refuse what one object can't have."""
        if target.kind is Kind.KEY and self.marker:
            raise HealthExConfigurationError(
                f"marker={self.marker!r} with the exact key {target.template!r}: one key can't have a marker "
                "beside it. Give the path up to its last '/', or no marker."
            )
        if target.kind is Kind.KEY and self.min_objects > 1:
            raise HealthExConfigurationError(
                f"min_objects={self.min_objects} with the exact key {target.template!r}, which is one object. "
                "Give a path that ends in '/', or a glob with wildcard_match=True."
            )


def recognized(value: Any) -> str | None:
    """Return an id of the service, or None where it was none that a path could take."""
    return value if isinstance(value, str) and value != UNRECOGNIZED else None


def _file_name(name: str, value: str | None) -> str | None:
    if value is not None and (not isinstance(value, str) or not value or "/" in value):
        raise HealthExConfigurationError(f"{name} is {value!r}; give a file's name without its path, or None.")
    return value


def refuse_pasted_templates(path: Any) -> None:
    """Refuse another system's variables before Jinja renders ``{{orgId}}`` to an error that names no cause."""
    for each in path if isinstance(path, list) else [path]:
        if isinstance(each, str):
            refuse_foreign_syntax(each)


def _first_reschedule(context: Context) -> datetime | None:
    """Return when a rescheduled sensor's wait began, by the rule of the Airflow it runs on."""
    ti: Any = context["ti"]
    if hasattr(ti, "get_first_reschedule_date"):
        return cast("datetime | None", ti.get_first_reschedule_date(context))
    from airflow.sensors.base import _orig_start_date  # Airflow 2.11

    first_try = (ti.max_tries or 0) - (ti.task.retries or 0) + 1
    first = _orig_start_date(ti.dag_id, ti.task_id, ti.run_id, ti.map_index, first_try)
    return cast("datetime | None", first)


def _read_event(event: Mapping[str, Any] | None) -> tuple[str, str]:
    status = event.get("status") if isinstance(event, Mapping) else None
    if status not in (ARRIVED, TIMED_OUT, REFUSED):
        raise HealthExError(f"The wait on the triggerer broke, see its log ({event!r}); a retry waits on.")
    return str(status), str((event or {}).get("message") or "")
