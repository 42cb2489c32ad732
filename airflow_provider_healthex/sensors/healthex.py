"""Waiting until the refreshed data has landed in S3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.amazon.aws.utils.mixins import aws_template_fields
from airflow.providers.common.compat.sdk import AirflowSkipException, conf

from airflow_provider_healthex.arguments import baseline, one_of
from airflow_provider_healthex.client.models import IN_PROGRESS, PATIENT_ACTION_NEEDED, whole_seconds
from airflow_provider_healthex.client.reasons import patient_action_needed
from airflow_provider_healthex.delivery import Arrived, Expectation, Target, Waiting, expand
from airflow_provider_healthex.delivery.listing import Look, look
from airflow_provider_healthex.delivery.manifest import manifest_lines
from airflow_provider_healthex.delivery.template import names_patient
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.s3 import Bucket
from airflow_provider_healthex.sensors.arrival import ArrivalSensor, bucket_and_paths, recognized
from airflow_provider_healthex.sensors.cohort import HealthExCohortArrivalSensor
from airflow_provider_healthex.triggers.healthex import HealthExDataArrivalTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = ["HealthExCohortArrivalSensor", "HealthExDataArrivalSensor"]

ON_PATIENT_ACTION = ("fail", "skip", "wait")
MAX_KEYS = 1_000


class HealthExDataArrivalSensor(ArrivalSensor):
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

    trigger_class = HealthExDataArrivalTrigger
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
        super().__init__(
            bucket_key=bucket_key,
            bucket_name=bucket_name,
            min_objects=min_objects,
            marker=marker,
            quiet_period=quiet_period,
            clock_skew=clock_skew,
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
        self.update = update
        self.since = since
        self.patient_id = patient_id
        self.project_id = project_id
        self.external_id = external_id
        self.org_id = org_id
        self.on_patient_action = one_of("on_patient_action", on_patient_action, ON_PATIENT_ACTION)
        self.manifest_key = manifest_key

    def _resolve(self) -> _Delivery:
        subject = _Subject.of(self.update, self)
        if subject.patient_action and self.on_patient_action != "wait":
            needed = patient_action_needed(subject.patient_id or "?", subject.patient_action_reason)
            if self.on_patient_action == "skip":
                raise AirflowSkipException(str(needed)) from needed
            raise needed
        bucket, paths = bucket_and_paths(self.bucket_name, self.bucket_key)
        targets = tuple(expand(path, subject.variables, wildcard=self.wildcard_match) for path in paths)
        self._check_targets(targets, subject)
        return _Delivery(
            bucket=self._bucket(bucket),
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
            self._check_kind(target)
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
        return self._check_manifest(expand(self.manifest_key, subject.variables), targets)

    def _conclude_event(self, event: Mapping[str, Any], context: Context) -> dict[str, Any] | None:
        delivery: _Delivery = self._delivery
        # The triggerer has decided; here its objects are only collected, as they are too many for the database.
        verdict = delivery.bucket.look(look(replace(delivery.expectation, quiet_period=0)))
        if isinstance(verdict, Waiting):
            self._last_seen = verdict.reason
            self.log.warning("The worker does not see what the triggerer saw, waiting again: %s", verdict.reason)
            return None
        return self._conclude(verdict, context)

    def _conclude(self, verdict: Arrived, context: Context) -> dict[str, Any]:
        manifest, delivery, arrived = None, cast("_Delivery", self._delivery), verdict
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
        self._tell_outlets(result, _EVENT_EXTRA, context)
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
            org_id=given.org_id or recognized(answer.get("organization_id")),
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

    def look(self) -> Look[Arrived | Waiting]:
        """Return the steps of one look."""
        return look(self.expectation)

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what its trigger needs of it."""
        return {"expectation": self.expectation.to_dict()}

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


def _common_prefix(prefixes: Sequence[str]) -> str:
    if len(prefixes) == 1:
        return prefixes[0]
    return "".join(commonprefix(prefixes).rpartition("/")[:2])  # noqa: RUF071 - cut at a "/" again
