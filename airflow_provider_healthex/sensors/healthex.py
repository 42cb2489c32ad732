"""Waiting until the refreshed data has landed in S3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.utils.mixins import aws_template_fields
from airflow.providers.common.compat.sdk import conf

from airflow_provider_healthex.delivery import Arrived, Waiting
from airflow_provider_healthex.delivery.hints import bucket_hint
from airflow_provider_healthex.delivery.listing import Look, look
from airflow_provider_healthex.sensors.arrival import RULE_FIELDS, Rule
from airflow_provider_healthex.sensors.bucket import BucketArrivalSensor, bucket_and_paths
from airflow_provider_healthex.sensors.cohort import HealthExCohortArrivalSensor
from airflow_provider_healthex.sensors.patient import PatientArrivalSensor, PatientWait
from airflow_provider_healthex.triggers.healthex import HealthExDataArrivalTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import XComArg

__all__ = ["HealthExCohortArrivalSensor", "HealthExDataArrivalSensor"]


class HealthExDataArrivalSensor(PatientArrivalSensor, BucketArrivalSensor):
    """
    Waits for a delivery newer than the request, in S3.

    The keys of the previous delivery are there already, so that a key which exists proves nothing. Arrived means:
    at least ``min_objects`` objects under the path were modified no earlier than the request, and none for
    ``quiet_period`` seconds by S3's clock. That is *a delivery since the request that has settled*: HealthEx documents
    neither file names nor an end marker, so that it need not be this very retrieval's, nor complete; and where
    nothing has changed, nothing may come.

    It is an :class:`S3KeySensor` with its AWS parameters, but takes another decision: ``check_fn``, ``use_regex``
    and ``metadata_keys`` are refused. So are ``silent_fail`` and ``never_fail``, which would hide what must be seen.
    Poke, reschedule and deferred mode decide alike, and honour ``execution_timeout`` (from the start of the try, and
    retryable), ``exponential_backoff`` and ``max_wait`` alike. What is wrong with literal arguments is found when the
    DAG is parsed.

    :param bucket_key: where HealthEx delivers (templated): a string, or a list in one bucket, or ``s3://`` URLs. May
        contain ``{orgId}``, ``{projectId}``, ``{healthexPatientId}``, ``{externalId}``, for HealthEx's delivery
        variables of the same name. Ends in ``/``: everything under it. With ``wildcard_match``: a glob over the
        whole key. Otherwise: that key.
    :param bucket_name: the bucket, where ``bucket_key`` is no URL (templated).
    :param update: the operator's output, ``update=refresh.output`` (templated); gives patient, project,
        organization and ``requested_at``.
    :param since: the moment of the request by hand, an ISO string or an aware datetime (templated); before
        ``update``'s. One of the two is required. The first poke of a try fixes it; with ``mode="reschedule"`` a
        template of the current time, such as ``{{ ti.start_date }}``, is refused.
    :param patient_id: HealthEx's id of the patient (templated); before ``update``'s, like the next two.
    :param project_id: the project (templated).
    :param org_id: the organization (templated).
    :param external_id: the id your side gave the patient (templated).
    :param min_objects: fresh objects that are required, for a list of keys: for each (templated).
    :param marker: the name of the file that ends a delivery, or its ending where it begins with a dot; a fresh one
        is then required instead of ``quiet_period``, and isn't counted (templated). HealthEx documents none.
    :param quiet_period: seconds, or a timedelta, since the newest object; 300 by default (templated).
    :param clock_skew: seconds, or a timedelta, by which S3's clock may be behind HealthEx's; 2 by default (templated).
    :param on_patient_action: for an update that needs patient action: ``fail`` (not retried), ``skip``, or ``wait``:
        HealthEx delivers without a new request when they have acted (official guide).
    :param manifest_key: a key to write a JSON line for each object to (templated); may contain the variables.
    :param wildcard_match: read ``bucket_key`` as a glob.
    :param deferrable: wait on the triggerer.
    :param aws_conn_id: the AWS connection (templated).
    :param poke_interval: seconds between two pokes, 60 by default.
    :param timeout: seconds until the task fails, 6 hours by default; there is one last poke then. ``soft_fail``
        turns this failure into a skip, and no other.
    :returns: ``bucket``, ``prefix``, ``uri``, ``patient_id``, ``project_id``, ``since``, ``keys`` (sorted, at most
        1,000), ``keys_truncated``, ``object_count``, ``total_bytes``, ``first_modified``, ``last_modified``,
        ``manifest``.
    :raises HealthExConfigurationError: on construction, for an argument that can't be used.
    :raises AirflowFailException: from the typed error, for what waiting can't mend.
    :raises AirflowSensorTimeout: when nothing arrived in time.
    :raises AirflowTaskTimeout: when ``execution_timeout`` ended the wait.
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
        *RULE_FIELDS,
    )

    def __init__(
        self,
        *,
        bucket_key: str | list[str] | XComArg,
        bucket_name: str | XComArg | None = None,
        update: Any = None,
        since: str | datetime | XComArg | None = None,
        patient_id: str | XComArg | None = None,
        project_id: str | XComArg | None = None,
        external_id: str | XComArg | None = None,
        org_id: str | XComArg | None = None,
        min_objects: int | str | XComArg = 1,
        marker: str | XComArg | None = None,
        quiet_period: timedelta | float | str | XComArg = 300,
        clock_skew: timedelta | float | str | XComArg = 2,
        on_patient_action: str = "fail",
        manifest_key: str | XComArg | None = None,
        wildcard_match: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: timedelta | float = 60,
        timeout: timedelta | float = 6 * 60 * 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            bucket_key=bucket_key,
            bucket_name=bucket_name,
            update=update,
            since=since,
            patient_id=patient_id,
            project_id=project_id,
            external_id=external_id,
            org_id=org_id,
            min_objects=min_objects,
            marker=marker,
            quiet_period=quiet_period,
            clock_skew=clock_skew,
            on_patient_action=on_patient_action,
            wildcard_match=wildcard_match,
            deferrable=deferrable,
            poke_interval=poke_interval,
            timeout=timeout,
            **kwargs,
        )
        self.manifest_key: Any = manifest_key
        self._check_arguments()

    def _check_literals(self, rule: Rule) -> None:
        super()._check_literals(rule)
        manifest = ("manifest_key", self.manifest_key)
        self._check_paths(rule, self._literal_paths(), self._stand_in_values(), manifest)

    def _resolve(self) -> _BucketWait:
        subject = self._subject()
        bucket, paths = bucket_and_paths(self.bucket_name, self.bucket_key)
        expectation = self._expectation(subject, paths)
        manifest = self._manifest("manifest_key", self.manifest_key, subject, expectation.targets)
        return _BucketWait(self._bucket(bucket), expectation, subject, manifest)


@dataclass(frozen=True)
class _BucketWait(PatientWait):
    """One wait in a bucket."""

    def address(self, path: str) -> str:
        """Return how messages show a path."""
        return repr(self.storage.uri(path))

    def look(self) -> Look[Arrived | Waiting]:
        """Return the steps of one poke."""
        return look(self.expectation)

    def hint(self, unmatched: int) -> Look[str | None]:
        """Return the steps that find out why nothing matches a path."""
        return bucket_hint(self.expectation.targets[unmatched], self.storage.bucket or "")

    def collect(self, event: Mapping[str, Any]) -> Look[Arrived | Waiting]:
        """Return the steps of one poke at what the triggerer saw."""
        return look(replace(self.expectation, quiet_period=0))
