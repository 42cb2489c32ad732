"""What waiting for deliveries has in common, wherever they land and for how many: modes, deadlines, failures."""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, cast

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    Asset,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_healthex.arguments import at_least, boolean, is_rendered_later, seconds, whole_number
from airflow_provider_healthex.client.models import UNRECOGNIZED
from airflow_provider_healthex.delivery import Kind, Target, Waiting, expand
from airflow_provider_healthex.delivery.schedule import PokeSchedule
from airflow_provider_healthex.delivery.template import refuse_foreign_syntax
from airflow_provider_healthex.exceptions import (
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExError,
    HealthExPatientActionNeeded,
)
from airflow_provider_healthex.triggers.arrival import ARRIVED, REFUSED, TIMED_OUT, WaitingLog

try:
    from airflow.sdk.exceptions import AirflowRescheduleException
except ImportError:  # Airflow 2.11
    from airflow.exceptions import AirflowRescheduleException  # type: ignore[no-redef, attr-defined, unused-ignore]

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

_BY_KIND = "transient errors are retried in every mode, permanent ones fail the task. Use soft_fail to skip on timeout"

#: Seconds that a triggerer has for its last poke before Airflow ends the wait.
DEFERRAL_GRACE = 60.0

#: Templates of a moment that is another one each time that Airflow renders them.
_MOVING = re.compile(r"\b(?:ti|task_instance)\.(?:start_date|queued_dttm)\b|\b(?:utcnow|now|today)\(")

#: What stands for a value that only a template knows, in checks at parse time.
STAND_IN = "rendered-later"


#: Template fields that all sensors share.
RULE_FIELDS = ("min_objects", "marker", "quiet_period", "clock_skew")


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
        """Take the steps of one poke and return its verdict."""

    def put(self, key: str, body: bytes) -> None:
        """Write a manifest."""

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what a trigger needs to poke here."""


class Wait(Protocol):
    """One wait, resolved from rendered arguments."""

    @property
    def storage(self) -> Storage:
        """Where it pokes."""

    @property
    def name(self) -> str:
        """What logs call it."""

    @property
    def place(self) -> str:
        """Where the delivery is awaited, as messages show it."""

    def look(self) -> Any:
        """Return the steps of one poke; they end with a :class:`Waiting`, or else with what arrived."""

    def hint(self, unmatched: int) -> Any:
        """Return the steps that find out why nothing matches a path, by its position: a text or None; or None."""

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what its trigger needs of it."""


@dataclass(frozen=True)
class Rule:
    """What counts as arrived, as the arguments say."""

    min_objects: int
    marker: str | None
    quiet_period: float
    clock_skew: float

    @classmethod
    def of(cls, *, min_objects: Any, marker: Any, quiet_period: Any, clock_skew: Any) -> Rule:
        """Check the arguments, literal or rendered."""
        return cls(
            min_objects=whole_number("min_objects", min_objects, 1),
            marker=_file_name("marker", marker),
            quiet_period=seconds("quiet_period", quiet_period),
            clock_skew=seconds("clock_skew", clock_skew),
        )

    def check_kind(self, target: Target) -> None:
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


class ArrivalSensor(BaseSensorOperator):
    """
    The frame of the sensors: subclasses know what is awaited, and the result.

    Poke, reschedule and deferred mode decide alike, with the same code. ``soft_fail`` covers the timeout alone.
    """

    #: Arguments that are refused, and why.
    refused_arguments: ClassVar[Mapping[str, str]] = {"silent_fail": _BY_KIND, "never_fail": _BY_KIND}
    trigger_class: type[BaseTrigger]
    deferral_grace = DEFERRAL_GRACE
    deferrable: bool
    wildcard_match: bool

    def __init__(
        self,
        *,
        update: Any,
        min_objects: int | str | Any,
        marker: str | Any,
        quiet_period: timedelta | float | str | Any,
        clock_skew: timedelta | float | str | Any,
        **kwargs: Any,
    ) -> None:
        for name, reason in self.refused_arguments.items():
            if kwargs.pop(name, None):
                raise _refused(self, name, reason)
        super().__init__(**kwargs)
        self.update = update
        self.min_objects = min_objects
        self.marker = marker
        self.quiet_period = plain_seconds(quiet_period)
        self.clock_skew = plain_seconds(clock_skew)
        self._gets_update = update is not None
        self._delivery: Any = None  # a Wait
        self._is_first_poke = False
        self._schedule: PokeSchedule | None = None
        self._limit = "timeout"  # the argument that the deadline comes from
        self._lines: WaitingLog | None = None
        self._last_poke = "none"
        self._own_execution_timeout: timedelta | None = None

    # At parse time

    def _check_arguments(self) -> None:
        """Refuse at parse time what no rendering can mend; the last step of a constructor."""
        self._refuse_arguments()
        boolean("deferrable", self.deferrable)
        boolean("wildcard_match", self.wildcard_match)
        at_least("timeout", self.timeout, 0, " s")
        at_least("poke_interval", self.poke_interval, 0, " s")
        if getattr(self, "_BaseOperator__from_mapped", False):
            return  # on a worker, where an error would be retried: execute finds the same, and its error is final
        self._check_update()
        self._check_literals(self._known_rule())

    @abstractmethod
    def _check_literals(self, rule: Rule) -> None:
        """Refuse what is wrong with the literal arguments, whatever the templates among them may become."""

    def _refuse_arguments(self) -> None:
        """Refuse what the task is, however it became so: default_args pass no constructor of ours."""
        for name, reason in self.refused_arguments.items():
            value = getattr(self, name, None)
            if value and value != ["Size", "Key"]:  # metadata_keys, by default
                raise _refused(self, name, reason)

    def _check_update(self) -> None:
        update = self.update
        if hasattr(update, "output") and hasattr(update, "task_id"):
            raise HealthExConfigurationError(
                f"update must be the operator's output, and is the operator itself: give update={update.task_id}.output"
            )
        if callable(update) and not hasattr(update, "resolve"):
            raise HealthExConfigurationError("update must be a task's output, and is a function: call it, update=…()")
        if isinstance(update, str) and not (is_rendered_later(update) and self._renders_natively()):
            raise HealthExConfigurationError(
                f"update must be the operator's output, and is a string ({update!r}): give update=refresh.output "
                "itself, not a template of it."
            )

    def _renders_natively(self) -> bool:
        own = getattr(self, "render_template_as_native_obj", None)  # Airflow 3.3
        if own is not None:
            return bool(own)
        dag = getattr(self, "_dag", None)
        return dag is None or bool(dag.render_template_as_native_obj)  # without a DAG yet, it may turn out so

    def _known_rule(self) -> Rule:
        """Check the literal parts of the rule, and return it with what excludes nothing for those rendered later."""
        defaults = {"min_objects": 1, "marker": None, "quiet_period": 0, "clock_skew": 0}
        return Rule.of(**{name: known(getattr(self, name), default) for name, default in defaults.items()})

    def _check_paths(
        self,
        rule: Rule,
        paths: Sequence[str],
        values: Mapping[str, str | None],
        manifest: tuple[str, Any] | None = None,
    ) -> None:
        """Check literal paths, with stand-ins for the values that aren't known yet."""
        targets = [expand(path, values, wildcard=self.wildcard_match) for path in paths]
        for target in targets:
            rule.check_kind(target)
        if manifest and manifest[1] and not is_rendered_later(manifest[1]):
            self._check_manifest(manifest[0], expand(manifest[1], values), targets)

    # On a worker

    def _rule(self) -> Rule:
        """Return what counts as arrived, from the rendered arguments."""
        return Rule.of(
            min_objects=self.min_objects,
            marker=self.marker,
            quiet_period=self.quiet_period,
            clock_skew=self.clock_skew,
        )

    @abstractmethod
    def _resolve(self) -> Wait:
        """Check the rendered arguments and return what they say to wait for."""

    @abstractmethod
    def _conclude(self, verdict: Any, context: Context) -> dict[str, Any]:
        """Return the result for what arrived, as it was seen here."""

    @abstractmethod
    def _conclude_event(self, event: Mapping[str, Any], context: Context) -> dict[str, Any] | None:
        """Return the result for what the triggerer saw arrive, or None where it is not there any more."""

    def _at_timeout(self, event: Mapping[str, Any], context: Context) -> Any:
        """Conclude that the timeout is over."""
        self._time_out(f"No delivery within {self.timeout:g} s under {self._place()}", str(event["message"]))

    def _accept(self, now: float) -> Any:
        """Return a verdict for what is not all, but enough by now; else None."""
        return None

    def _carried(self) -> dict[str, Any]:
        """Return what a deferred wait hands to its next process, besides its deadline."""
        return {}

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
            self._refuse_arguments()
            schedule = self._prepare(context)
            while True:
                began = time.time()
                found = self.poke(context)
                if found:
                    return found.xcom_value
                now = time.time()
                if began >= schedule.deadline:
                    return self._at_deadline({"message": self._last_poke}, context)
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
        if self._delivery is None:
            self._prepare(context)
        verdict = self._look(self._delivery.look())
        if isinstance(verdict, Waiting):
            verdict = self._accept(time.time()) or verdict
        if not isinstance(verdict, Waiting):
            return PokeReturnValue(True, self._conclude(verdict, context))
        self._last_poke = verdict.reason
        self._compare(verdict)
        if self._lines:
            self._lines.note(verdict.reason)
        return PokeReturnValue(False)

    def _compare(self, verdict: Waiting) -> None:
        """At the first poke, say why nothing matches a path: a typing error would otherwise wait until the timeout."""
        if not self._is_first_poke:
            return
        self._is_first_poke = False
        for position in verdict.unmatched:
            steps, hint = self._delivery.hint(position), None
            with suppress(HealthExConfigurationError):  # it is no reason to fail that a hint can't be had
                hint = self._look(steps) if steps is not None else None
            if isinstance(hint, str):
                self.log.warning(hint)

    def _look(self, steps: Any) -> Any:
        """Take the steps of one poke; Airflow's own trouble with a connection is as transient as the storage's."""
        try:
            return self._delivery.storage.look(steps)
        except HealthExConnectionError as error:
            return Waiting(str(error))

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
            if status == TIMED_OUT:
                self._last_poke = message
                return self._at_deadline(event, context)
            result = self._conclude_event(event, context)
            if result is None and time.time() >= schedule.deadline:
                return self._at_deadline({**event, "message": self._last_poke}, context)
            return result if result is not None else self._defer_to_trigger(schedule)

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
        reason = self._last_poke
        if self._limit == "timeout":  # Airflow 2.11 ends a deferral at the execution_timeout itself
            reason = f"{reason}. No triggerer reported until the deadline: is one running?"
        return self._at_deadline({"message": reason}, context)

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
            rescheduled = _first_reschedule(context)
            started = rescheduled or now
            try_started = _try_start(context, started)
        ends = {"timeout": started + self.timeout}
        limit = self._own_execution_timeout or self.execution_timeout
        if limit is not None:
            ends["execution_timeout"] = try_started + limit.total_seconds()
        self._limit = min(reversed(ends), key=ends.__getitem__)
        if deadline is not None:  # both began when the wait did
            started, ends[self._limit] = deadline - (ends[self._limit] - now), deadline
        schedule = self._schedule = self._make_schedule(started, ends[self._limit])
        self._is_first_poke = deadline is None and rescheduled is None
        # Whether an earlier poke of a rescheduled sensor had listed isn't known: it was another process's.
        self._delivery = self._resolve() if since is None else self._resolve_since(since)
        self._lines = WaitingLog(self.log, self._delivery.name, schedule, self._limit)
        return schedule

    def _resolve_since(self, since: str) -> Wait:
        return self._resolve()

    def _make_schedule(self, started: float, deadline: float) -> PokeSchedule:
        return PokeSchedule(
            started=started,
            deadline=deadline,
            poke_interval=self.poke_interval,
            exponential_backoff=bool(self.exponential_backoff),
            max_wait=self.max_wait.total_seconds() if self.max_wait else None,
        )

    def _defer_to_trigger(self, schedule: PokeSchedule) -> NoReturn:
        delivery: Wait = self._delivery
        left = max(0, schedule.deadline - time.time())
        trigger_class: Any = self.trigger_class
        self.defer(
            trigger=trigger_class(
                waiting_for=delivery.name,
                deadline=schedule.deadline,
                poke_interval=schedule.poke_interval,
                started=schedule.started,
                exponential_backoff=schedule.exponential_backoff,
                max_wait=schedule.max_wait,
                limit=self._limit,
                **({} if schedule.enough_at is None else {"enough_at": schedule.enough_at}),
                **delivery.storage.trigger_arguments(),
                **delivery.trigger_arguments(),
            ),
            method_name="execute_complete",
            kwargs={"deadline": schedule.deadline, **self._carried()},
            timeout=timedelta(seconds=left + self.poke_interval + self.deferral_grace),
        )
        raise AssertionError("defer() always raises")

    def _at_deadline(self, event: Mapping[str, Any], context: Context) -> Any:
        """Conclude that the wait is over, by the limit that ended it."""
        if self._limit == "execution_timeout":
            raise AirflowTaskTimeout(self._execution_timeout_message(str(event["message"])))
        return self._at_timeout(event, context)

    def _execution_timeout_message(self, reason: str) -> str:
        limit = self._own_execution_timeout or self.execution_timeout or timedelta()
        verdict = f"execution_timeout of {limit.total_seconds():g} s exceeded"
        return f"{verdict} while waiting for {self._place()}; last poke: {reason}"

    def _place(self) -> str:
        return self._delivery.place if self._delivery is not None else "the delivery"

    def _time_out(self, verdict: str, reason: str) -> NoReturn:
        message = f"{verdict}; last poke: {reason}"
        if self.soft_fail:
            raise AirflowSkipException(message)
        raise AirflowSensorTimeout(message)

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


def known(value: Any, otherwise: Any = STAND_IN) -> Any:
    """Return a literal value, and something else for one that is rendered later."""
    return otherwise if is_rendered_later(value) else value


def literals(paths: Any) -> list[Any]:
    """Return those of one or several paths that are literal."""
    return [path for path in (paths if isinstance(paths, (list, tuple)) else [paths]) if not is_rendered_later(path)]


def plain_seconds(value: Any) -> Any:
    """Return a timedelta as seconds, which the rendered fields of Airflow's UI can show; anything else as it is."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def recognized(value: Any) -> str | None:
    """Return an id of the service, or None where it was none that a path could take."""
    return value if isinstance(value, str) and value != UNRECOGNIZED else None


def short(value: str) -> str:
    """Return an id as logs and messages show it: enough to find it, and not all of it."""
    return value if len(value) <= 12 else f"{value[:8]}…"


def refuse_moving(since: Any, *, reschedule: bool) -> None:
    """Refuse a moment that each process of a rescheduled wait would render to another one, and so wait for ever."""
    found = _MOVING.search(since) if reschedule and isinstance(since, str) and is_rendered_later(since) else None
    if found:
        raise HealthExConfigurationError(
            f"since is {since!r}, and {found.group()!r} is another moment at each poke of mode='reschedule': the wait "
            "would never end. Give update=refresh.output, a fixed moment such as {{ dag_run.start_date }}, or "
            "deferrable=True."
        )


def no_result() -> HealthExConfigurationError:
    """Return the error for an operator that has left nothing to wait for."""
    return HealthExConfigurationError(
        "update is None: the operator left no result. It was skipped, or marked success by hand; clear it, or give "
        "since=…"
    )


def _refused(sensor: Any, name: str, reason: str) -> HealthExConfigurationError:
    return HealthExConfigurationError(f"{name} is not supported by {type(sensor).__name__}: {reason}")


def _file_name(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or any(character in value for character in "/*?"):
        raise HealthExConfigurationError(
            f"{name} must be a file's name, or its ending with a dot, without path and glob (got {value!r})"
        )
    return value


def refuse_pasted_templates(path: Any) -> None:
    """Refuse another system's variables before Jinja renders ``{{orgId}}`` to an error that names no cause."""
    for each in path if isinstance(path, list) else [path]:
        if isinstance(each, str):
            refuse_foreign_syntax(each)


def _first_reschedule(context: Context) -> float | None:
    """Return when a rescheduled sensor's wait began, by the rule of the Airflow it runs on."""
    ti: Any = context["ti"]
    if hasattr(ti, "get_first_reschedule_date"):
        first = ti.get_first_reschedule_date(context)
    else:
        from airflow.sensors.base import _orig_start_date  # Airflow 2.11

        first_try = (ti.max_tries or 0) - (ti.task.retries or 0) + 1
        first = _orig_start_date(ti.dag_id, ti.task_id, ti.run_id, ti.map_index, first_try)
    return cast("datetime", first).timestamp() if first else None


def _try_start(context: Context, wait_started: float) -> float:
    """Return when this try of a rescheduled sensor began: on Airflow 2.11 the wait may have, in an earlier try."""
    ti: Any = context["ti"]
    start = None if hasattr(ti, "get_first_reschedule_date") else getattr(ti, "start_date", None)
    return max(wait_started, start.timestamp()) if start else wait_started


def _read_event(event: Mapping[str, Any] | None) -> tuple[str, str]:
    status = event.get("status") if isinstance(event, Mapping) else None
    if status not in (ARRIVED, TIMED_OUT, REFUSED):
        raise HealthExError(f"The wait on the triggerer broke, see its log ({event!r}); a retry waits on.")
    return str(status), str((event or {}).get("message") or "")
