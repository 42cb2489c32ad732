"""Waiting until the refreshed data has landed in S3."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, NoReturn, cast

from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor
from airflow.providers.amazon.aws.utils.mixins import aws_template_fields
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    Asset,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_healthex.arguments import at_least, baseline, one_of
from airflow_provider_healthex.client.models import (
    IN_PROGRESS,
    PATIENT_ACTION_NEEDED,
    UNRECOGNIZED,
    whole_seconds,
)
from airflow_provider_healthex.client.reasons import patient_action_needed
from airflow_provider_healthex.delivery import Arrived, Expectation, Kind, Target, expand
from airflow_provider_healthex.delivery.listing import look
from airflow_provider_healthex.delivery.manifest import manifest_lines
from airflow_provider_healthex.delivery.template import names_patient, refuse_foreign_syntax
from airflow_provider_healthex.exceptions import (
    HealthExConfigurationError,
    HealthExError,
    HealthExPatientActionNeeded,
)
from airflow_provider_healthex.s3 import AwsAccess, Bucket
from airflow_provider_healthex.triggers.healthex import (
    ARRIVED,
    REFUSED,
    TIMED_OUT,
    HealthExDataArrivalTrigger,
    waiting_line,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

ON_PATIENT_ACTION = ("fail", "skip", "wait")
MAX_KEYS = 1_000

_BY_TIME = "arrival is decided by the objects' times; use min_objects, marker or quiet_period"
_BY_KIND = "what passes is waited for and what doesn't fails, in every mode; soft_fail skips a timeout"
_REFUSED_ARGUMENTS = {
    "check_fn": _BY_TIME,
    "use_regex": _BY_TIME,
    "metadata_keys": _BY_TIME,
    "silent_fail": _BY_KIND,
    "never_fail": _BY_KIND,
}

#: Seconds after the deadline at which Airflow ends the wait, should no triggerer do so.
DEFERRAL_GRACE = 60


class HealthExDataArrivalSensor(S3KeySensor):
    """
    Waits for a delivery newer than the request, in S3.

    The keys of the previous delivery are there already, so that a key which exists proves nothing. Arrived means:
    at least ``min_objects`` objects under the path were modified no earlier than the request, and none for
    ``quiet_period`` seconds by S3's clock. That is *a delivery since the request that has paused*: HealthEx documents
    neither file names nor an end marker, so that it need not be this very retrieval's, nor complete; and where
    nothing has changed, nothing may come.

    It is an :class:`S3KeySensor` with its AWS parameters, but takes another decision: ``check_fn``, ``use_regex``
    and ``metadata_keys`` are refused. So are ``silent_fail`` and ``never_fail``, which would hide what must be seen.
    Poke, reschedule and deferred mode decide alike.

    :param bucket_key: where HealthEx delivers (templated): a string, or a list in one bucket, or ``s3://`` URLs. May
        contain ``{orgId}``, ``{projectId}``, ``{healthexPatientId}``, ``{externalId}``, for HealthEx's delivery
        variables of the same name. Ends in ``/``: everything under it. With ``wildcard_match``: a glob over the
        whole key. Otherwise: that key.
    :param bucket_name: the bucket, where ``bucket_key`` is no URL (templated).
    :param update: the operator's output, ``update=refresh.output`` (templated); gives patient, project,
        organisation and baseline.
    :param since: the baseline by hand, an ISO string or an aware datetime (templated); before ``update``'s.
        One of the two is required.
    :param patient_id: HealthEx's id of the patient (templated); before ``update``'s, like the next two.
    :param project_id: the project (templated).
    :param org_id: the organisation (templated).
    :param external_id: the id your side gave the patient (templated).
    :param min_objects: objects that must have come, for a list of keys: for each.
    :param marker: the name of the file that ends a delivery, or its ending where it begins with a dot; a fresh one
        is then required instead of ``quiet_period``, and isn't counted. HealthEx documents none.
    :param quiet_period: seconds since the newest object, 300 by default.
    :param clock_skew: seconds by which S3's clock may be behind HealthEx's, 2 by default.
    :param on_patient_action: for an update that needs the patient: ``fail`` (not retried), ``skip``, or ``wait``:
        HealthEx delivers without a new request when they have acted (official guide).
    :param manifest_key: a key to write a JSON line for each object to (templated); may contain the variables.
    :param wildcard_match: read ``bucket_key`` as a glob.
    :param deferrable: wait on the triggerer.
    :param aws_conn_id: the AWS connection (templated).
    :param poke_interval: seconds between two looks, 60 by default.
    :param timeout: seconds until the task fails, 6 hours by default; there is one last look then. ``soft_fail``
        turns this failure into a skip, and no other.
    :returns: ``bucket``, ``prefix``, ``uri``, ``patient_id``, ``project_id``, ``since``, ``keys`` (sorted, at most
        1,000), ``keys_truncated``, ``object_count``, ``total_bytes``, ``first_modified``, ``last_modified``,
        ``manifest``.
    :raises HealthExConfigurationError: on construction, for an argument that can't be used.
    :raises AirflowFailException: from the typed error, for what waiting can't mend.
    :raises AirflowSensorTimeout: when nothing arrived in time.
    """

    template_fields: Sequence[str] = aws_template_fields(
        "bucket_key",
        "bucket_name",
        "update",
        "since",
        "patient_id",
        "project_id",
        "external_id",
        "org_id",
        "manifest_key",
    )

    def __init__(
        self,
        *,
        bucket_key: str | list[str],
        bucket_name: str | None = None,
        update: Any = None,
        since: str | datetime | None = None,
        patient_id: str | None = None,
        project_id: str | None = None,
        external_id: str | None = None,
        org_id: str | None = None,
        min_objects: int = 1,
        marker: str | None = None,
        quiet_period: float = 300,
        clock_skew: float = 2,
        on_patient_action: str = "fail",
        manifest_key: str | None = None,
        wildcard_match: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: timedelta | float = 60,
        timeout: timedelta | float = 6 * 60 * 60,
        **kwargs: Any,
    ) -> None:
        for name, reason in _REFUSED_ARGUMENTS.items():
            if kwargs.pop(name, None):
                raise HealthExConfigurationError(f"{type(self).__name__} takes no {name}: {reason}.")
        super().__init__(
            bucket_key=bucket_key,
            bucket_name=bucket_name,
            wildcard_match=wildcard_match,
            deferrable=deferrable,
            poke_interval=poke_interval,
            timeout=timeout,
            **kwargs,
        )
        if update is None and since is None:
            raise HealthExConfigurationError(
                f"{type(self).__name__} needs update=… (the operator's output) or since=… (a baseline): the objects "
                "of an earlier delivery are there already, so that existence proves nothing."
            )
        _refuse_pasted_templates(bucket_key)
        self.update = update
        self.since = since
        self.patient_id = patient_id
        self.project_id = project_id
        self.external_id = external_id
        self.org_id = org_id
        self.min_objects = int(at_least("min_objects", min_objects, 1))
        self.marker = _file_name("marker", marker)
        self.quiet_period = at_least("quiet_period", quiet_period, 0, " seconds")
        self.clock_skew = at_least("clock_skew", clock_skew, 0, " seconds")
        self.on_patient_action = one_of("on_patient_action", on_patient_action, ON_PATIENT_ACTION)
        self.manifest_key = manifest_key
        self._delivery: _Delivery | None = None
        self._deadline: float | None = None
        self._last_seen = "nothing"

    def execute(self, context: Context) -> Any:
        """Wait, here or on the triggerer."""
        try:
            started = self._prepare(context)
            if not self.deferrable:
                return super(S3KeySensor, self).execute(context)
            found = self.poke(context)
            if found:
                return found.xcom_value
            return self._defer_until(started + self.timeout)
        except AirflowSensorTimeout:
            self._time_out(self._last_seen)
        except (HealthExConfigurationError, HealthExPatientActionNeeded) as error:
            # Neither a retry nor soft_fail: what can't be mended by waiting must be seen.
            raise AirflowFailException(str(error)) from error

    def poke(self, context: Context) -> PokeReturnValue:
        """
        Look once.

        :raises HealthExConfigurationError: where the arguments can't be used, or S3 refuses for good.
        :raises HealthExPatientActionNeeded: with ``on_patient_action="fail"``, where the patient must act.
        """
        if self._delivery is None:
            self._prepare(context)
        delivery = self._delivery
        assert delivery is not None
        verdict = delivery.bucket.look(look(delivery.expectation))
        if isinstance(verdict, Arrived):
            return PokeReturnValue(True, self._conclude(verdict, delivery, context))
        self._last_seen = verdict.reason
        left = self._deadline - time.time() if self._deadline else None
        self.log.info(waiting_line(delivery.name, verdict.reason, left))
        return PokeReturnValue(False)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None, deadline: float = 0) -> Any:
        """Conclude what the triggerer saw."""
        try:
            status, message = _read_event(event)
            if status == TIMED_OUT:
                self._time_out(message)
            if status == REFUSED:
                raise HealthExConfigurationError(message)
            self._prepare(context)
            delivery = self._delivery
            assert delivery is not None
            # The triggerer has decided; here its objects are only collected, as they are too many for the database.
            verdict = delivery.bucket.look(look(replace(delivery.expectation, quiet_period=0)))
            if isinstance(verdict, Arrived):
                return self._conclude(verdict, delivery, context)
            self.log.warning("The delivery is not there any more, waiting again: %s", verdict.reason)
            return self._defer_until(deadline)
        except HealthExConfigurationError as error:
            raise AirflowFailException(str(error)) from error

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume without Airflow's ``soft_fail``, which would turn every failure into a skip, not just a timeout."""
        if next_method == "__fail__" and "timeout" in str((next_kwargs or {}).get("error", "")).lower():
            self._time_out("no triggerer reported until the deadline; is one running?")
        return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)

    def _prepare(self, context: Context) -> float:
        """Check the arguments, now that they are rendered, and return when this wait began (epoch seconds)."""
        rescheduled = _first_reschedule(context) if self.reschedule else None
        started = rescheduled.timestamp() if rescheduled else time.time()
        self._deadline = started + self.timeout
        # An earlier poke of a rescheduled sensor was another process's; it had listed, or the task had failed.
        self._delivery = self._resolve(listed=rescheduled is not None)
        return started

    def _defer_until(self, deadline: float) -> NoReturn:
        assert self._delivery is not None
        left = max(0, deadline - time.time())
        self.defer(
            trigger=HealthExDataArrivalTrigger(
                bucket_name=self._delivery.bucket.name,
                expectation=self._delivery.expectation.to_dict(),
                waiting_for=self._delivery.name,
                deadline=deadline,
                poke_interval=self.poke_interval,
                aws=asdict(self._delivery.bucket.access),
            ),
            method_name="execute_complete",
            kwargs={"deadline": deadline},
            timeout=timedelta(seconds=left + self.poke_interval + DEFERRAL_GRACE),
        )
        raise AssertionError("defer() always raises")

    def _time_out(self, reason: str) -> NoReturn:
        message = f"No delivery within {self.timeout:g} s. Last seen: {reason}"
        if self.soft_fail:
            raise AirflowSkipException(message)
        raise AirflowSensorTimeout(message)

    def _get_next_poke_interval(self, started_at: Any, run_duration: Any, poke_count: int) -> float:
        """Never sleep past the deadline: there is one last look at it."""
        interval = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        return float(max(0, min(interval, self.timeout - run_duration())))

    def _resolve(self, *, listed: bool) -> _Delivery:
        subject = _Subject.of(self.update, self)
        if subject.patient_action and self.on_patient_action != "wait":
            needed = patient_action_needed(subject.patient_id or "?", subject.patient_action_reason)
            if self.on_patient_action == "skip":
                raise AirflowSkipException(str(needed)) from needed
            raise needed
        bucket, paths = _bucket_and_paths(self.bucket_name, self.bucket_key)
        targets = tuple(expand(path, subject.variables, wildcard=self.wildcard_match) for path in paths)
        self._check_targets(targets, subject)
        return _Delivery(
            bucket=Bucket(
                bucket,
                AwsAccess(self.aws_conn_id, self.region_name, self.verify, self.botocore_config),
                listed=listed,
            ),
            expectation=Expectation(
                targets=targets,
                since=subject.since,
                clock_skew=self.clock_skew,
                min_objects=self.min_objects,
                quiet_period=self.quiet_period,
                marker=self.marker,
            ),
            subject=subject,
            manifest_key=self._manifest_key(targets, subject),
        )

    def _check_targets(self, targets: Sequence[Target], subject: _Subject) -> None:
        for target in targets:
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
            ids = [value for value in (subject.patient_id, subject.external_id) if value]
            if not names_patient(target.template) and not any(value in target.template for value in ids):
                self.log.warning(
                    "The path %s does not name the patient: a delivery for any patient will be taken for this one's. "
                    "Put {healthexPatientId} or {externalId} into it.",
                    target.template,
                )

    def _manifest_key(self, targets: Sequence[Target], subject: _Subject) -> str | None:
        if not self.manifest_key:
            return None
        manifest = expand(self.manifest_key, subject.variables)
        if manifest.kind is Kind.PREFIX or any(target.matches(manifest.prefix) for target in targets):
            raise HealthExConfigurationError(
                f"manifest_key is {self.manifest_key!r}; give a key, and outside the path that is waited for, where "
                "it would be taken for delivered data."
            )
        return manifest.prefix

    def _conclude(self, arrived: Arrived, delivery: _Delivery, context: Context) -> dict[str, Any]:
        manifest = None
        if delivery.manifest_key:
            root = f"s3://{delivery.bucket.name}/"
            lines = manifest_lines(arrived.objects, root=root, patient_id=delivery.subject.patient_id)
            delivery.bucket.put(delivery.manifest_key, "".join(f"{line}\n" for line in lines).encode())
            manifest = root + delivery.manifest_key
        result = delivery.result(arrived, manifest)
        self.log.info(
            "Arrived for %s: %s object(s), %s bytes, modified %s to %s",
            delivery.name,
            f"{result['object_count']:,}",
            f"{result['total_bytes']:,}",
            result["first_modified"],
            result["last_modified"],
        )
        self.log.debug("Keys: %s", result["keys"])
        for outlet in self.outlets or ():
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra.update({key: result[key] for key in _EVENT_EXTRA})
        return result


#: What downstream DAGs are told by asset events: neither keys nor ids.
_EVENT_EXTRA = ("object_count", "total_bytes", "since", "first_modified", "last_modified")


@dataclass(frozen=True)
class _Subject:
    """Whose data is waited for, and since when."""

    patient_id: str | None
    project_id: str | None
    org_id: str | None
    external_id: str | None
    since: datetime
    patient_action: bool = False
    patient_action_reason: str | None = None

    @classmethod
    def of(cls, update: Any, given: HealthExDataArrivalSensor) -> _Subject:
        """Combine an update with what the author gave by hand, which goes first."""
        answer = _one_update(update) if update is not None else {}
        since = given.since or answer.get("requested_at")
        if not since:
            raise HealthExConfigurationError("since is empty, and there is no update: give one of the two.")
        return cls(
            patient_id=given.patient_id or answer.get("patient_id"),
            project_id=given.project_id or answer.get("project_id"),
            org_id=given.org_id or _recognized(answer.get("organization_id")),
            external_id=given.external_id,
            since=baseline("since" if given.since else "update['requested_at']", since),
            patient_action=answer.get("message") == PATIENT_ACTION_NEEDED,
            patient_action_reason=answer.get("patient_action_needed_reason"),
        )

    @property
    def variables(self) -> dict[str, str | None]:
        return {
            "orgId": self.org_id,
            "projectId": self.project_id,
            "healthexPatientId": self.patient_id,
            "externalId": self.external_id,
        }


@dataclass(frozen=True)
class _Delivery:
    """One wait, resolved."""

    bucket: Bucket
    expectation: Expectation
    subject: _Subject
    manifest_key: str | None

    @property
    def name(self) -> str:
        """What logs call it."""
        return f"patient {self.subject.patient_id}" if self.subject.patient_id else "a delivery"

    def result(self, arrived: Arrived, manifest: str | None) -> dict[str, Any]:
        """Return the sensor's result."""
        objects = arrived.objects
        prefix = _common_prefix([target.prefix for target in self.expectation.targets])
        times = [row.last_modified for row in objects]
        return {
            "bucket": self.bucket.name,
            "prefix": prefix,
            "uri": f"s3://{self.bucket.name}/{prefix}",
            "patient_id": self.subject.patient_id,
            "project_id": self.subject.project_id,
            "since": whole_seconds(self.subject.since),
            "keys": [row.key for row in objects[:MAX_KEYS]],
            "keys_truncated": len(objects) > MAX_KEYS,
            "object_count": len(objects),
            "total_bytes": sum(row.size for row in objects),
            "first_modified": whole_seconds(min(times)),
            "last_modified": whole_seconds(max(times)),
            "manifest": manifest,
        }


def _file_name(name: str, value: str | None) -> str | None:
    if value is not None and (not isinstance(value, str) or not value or "/" in value):
        raise HealthExConfigurationError(f"{name} is {value!r}; give a file's name without its path, or None.")
    return value


def _one_update(update: Any) -> dict[str, Any]:
    """Return an update's answer, and say what else it is if it isn't one."""
    if isinstance(update, Mapping) and "in_progress" in update:
        what = "a cohort's: wait for it with HealthExCohortArrivalSensor"
    elif isinstance(update, Mapping) and {"patient_id", "project_id", "message", "requested_at"} <= update.keys():
        if update["message"] in (IN_PROGRESS, PATIENT_ACTION_NEEDED):
            return dict(update)
        what = f"a dict whose message is {update['message']!r}"
    elif isinstance(update, str):
        what = "a string: give update=refresh.output itself, not a template of it"
    elif isinstance(update, Sequence):
        what = "several: wait for each with HealthExDataArrivalSensor.partial(…).expand(update=refresh.output)"
    else:
        what = f"a {type(update).__name__}"
    raise HealthExConfigurationError(f"update must be the output of one HealthExUpdatePatientOperator, and is {what}.")


def _recognized(value: Any) -> str | None:
    return value if isinstance(value, str) and value != UNRECOGNIZED else None


def _refuse_pasted_templates(bucket_key: Any) -> None:
    """Refuse another system's variables before Jinja renders ``{{orgId}}`` to an error that names no cause."""
    for path in bucket_key if isinstance(bucket_key, list) else [bucket_key]:
        if isinstance(path, str):
            refuse_foreign_syntax(path)


def _bucket_and_paths(bucket_name: str | None, bucket_key: str | Sequence[str]) -> tuple[str, list[str]]:
    """Return the bucket and the paths in it. S3Hook's parser would cut a glob off at its first ``?``."""
    buckets, paths = set(), []
    for key in [bucket_key] if isinstance(bucket_key, str) else bucket_key or [""]:
        bucket, path = bucket_name, key
        if isinstance(key, str) and key.startswith("s3://"):
            if bucket_name:
                raise HealthExConfigurationError(
                    f"bucket_name is {bucket_name!r} and bucket_key is the URL {key!r}; give one of the two."
                )
            bucket, _, path = key.removeprefix("s3://").partition("/")
        if not bucket:
            raise HealthExConfigurationError(
                f"No bucket for {key!r}: give bucket_name=…, or bucket_key as s3://bucket/…"
            )
        buckets.add(bucket)
        paths.append(path)
    if len(buckets) > 1:
        raise HealthExConfigurationError(
            f"bucket_key names the buckets {sorted(buckets)}; one sensor waits in one bucket."
        )
    return buckets.pop(), paths


def _common_prefix(prefixes: Sequence[str]) -> str:
    if len(prefixes) == 1:
        return prefixes[0]
    return "".join(commonprefix(prefixes).rpartition("/")[:2])  # noqa: RUF071 - cut at a "/" again


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
