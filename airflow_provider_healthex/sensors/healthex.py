"""Waiting until the refreshed data has landed in S3: for one patient, or for a cohort with one task and one trigger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor
from airflow.providers.amazon.aws.utils.mixins import aws_template_fields
from airflow.providers.common.compat.sdk import conf

from airflow_provider_healthex.arguments import CHUNK_NAME, name_chunks_alone, one_of
from airflow_provider_healthex.sensors.awaited import Awaited
from airflow_provider_healthex.sensors.base import ArrivalSensor
from airflow_provider_healthex.sensors.bucket import GRACE, REFUSED_ARGUMENTS, check_literals, open_bucket
from airflow_provider_healthex.sensors.checks import existence_proves_nothing, plain_seconds
from airflow_provider_healthex.sensors.request import (
    RULE_FIELDS,
    check_cohort,
    check_patient,
    enough,
    one_path,
)
from airflow_provider_healthex.sensors.results import (
    COHORT_EVENT_KEYS,
    COHORT_REFUSED,
    ON_PATIENT_ACTION,
    PATIENT_EVENT_KEYS,
    await_cohort,
    await_patient,
    cohort_verdict,
)
from airflow_provider_healthex.triggers.healthex import HealthExDataArrivalTrigger

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow.providers.common.compat.sdk import XComArg

__all__ = ["HealthExCohortArrivalSensor", "HealthExDataArrivalSensor"]


class HealthExDataArrivalSensor(ArrivalSensor, S3KeySensor):
    """
    Waits for a delivery newer than the request, in S3.

    The keys of the previous delivery exist already, so existence proves nothing. Arrived means: at least
    ``min_objects`` objects under the path were modified since the request, and none for ``quiet_period`` seconds by
    S3's clock. That is *a delivery since the request that has settled*. HealthEx documents neither file names nor an
    end marker: it need not be the delivery of this very retrieval, nor complete. If nothing has changed, nothing may
    come.

    It is an ``S3KeySensor`` with its AWS parameters and another decision: ``check_fn``, ``use_regex`` and
    ``metadata_keys`` are refused. So are ``silent_fail`` and ``never_fail``, which would hide permanent errors. Poke,
    reschedule and deferred mode decide alike. They honour ``execution_timeout`` (from the start of the try; retryable),
    ``exponential_backoff`` and ``max_wait`` alike. Literal arguments are checked when the DAG is parsed.

    :param bucket_key: where HealthEx delivers (templated): a string, or a list in one bucket, or ``s3://`` URLs. May
        contain ``{orgId}``, ``{projectId}``, ``{healthexPatientId}``, ``{externalId}``, for HealthEx's delivery
        variables of the same name. Ends in ``/``: everything under it. With ``wildcard_match``: a glob over the
        whole key. Otherwise: that key.
    :param bucket_name: the bucket, where ``bucket_key`` is no URL (templated).
    :param update: the operator's output, ``update=refresh.output`` (templated): patient, project, organization
        and ``requested_at``.
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
        HealthEx delivers without a new request after the patient has acted (official guide).
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
    :raises AirflowFailException: from the typed error, for a permanent one.
    :raises AirflowSensorTimeout: when nothing arrived in time.
    :raises AirflowTaskTimeout: when ``execution_timeout`` ended the wait.
    """

    refused_arguments: ClassVar[Mapping[str, str]] = REFUSED_ARGUMENTS
    trigger_class = HealthExDataArrivalTrigger
    deferral_grace = GRACE
    event_keys = PATIENT_EVENT_KEYS
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
            wildcard_match=wildcard_match,
            deferrable=deferrable,
            poke_interval=poke_interval,
            timeout=timeout,
            **kwargs,
        )
        existence_proves_nothing(self, update, since)
        self.update = update
        self.gets_update = update is not None
        self.since: Any = since
        self.patient_id: Any = patient_id
        self.project_id: Any = project_id
        self.external_id: Any = external_id
        self.org_id: Any = org_id
        self.min_objects = min_objects
        self.marker = marker
        self.quiet_period = plain_seconds(quiet_period)
        self.clock_skew = plain_seconds(clock_skew)
        self.on_patient_action = one_of("on_patient_action", on_patient_action, ON_PATIENT_ACTION)
        self.manifest_key: Any = manifest_key
        self._check_arguments()

    def _check_literals(self) -> None:
        check_patient(self, check_literals(self), ("manifest_key", self.manifest_key))

    def _await(self, since: str | None) -> Awaited:
        bucket, paths = open_bucket(self)
        return await_patient(self, bucket, paths, ("manifest_key", self.manifest_key), since)


class HealthExCohortArrivalSensor(ArrivalSensor, S3KeySensor):
    """
    Waits for a delivery newer than the request for every patient of a cohort, in S3, with one task.

    Each patient in progress is decided by their own ``requested_at``, as in `HealthExDataArrivalSensor`. Patients who
    need to act first, or whose update failed, are not awaited. A patient who has arrived is not listed again.

    A poke takes about as many requests as the lesser of: the pages (1,000 objects) under the part of the path that all
    share, and the missing patients. With a glob before the patient it takes those pages. The first poke makes one
    request after the other; later ones make up to 8 at once, or ``max_pool_connections`` of ``botocore_config`` where
    that is less. It needs a general purpose bucket: directory buckets (S3 Express) list in no order.

    Deferred, the trigger's row holds every patient's id and seconds: up to 10,000 patients, and 500 with a MySQL
    metadata database. A worker of Airflow 3 can't know the database: it warns above 500 there.

    :param update: the cohort operator's output, ``update=refresh.output`` (templated).
    :param bucket_key: where HealthEx delivers (templated): one string, with ``{healthexPatientId}`` or
        ``{externalId}``, which comes from the update's entries; otherwise as in `HealthExDataArrivalSensor`.
    :param bucket_name: the bucket, where ``bucket_key`` is no URL (templated).
    :param min_fraction: the fraction of the patients in progress, 0 to 1, who must have arrived at the deadline for the
        task to succeed (templated). Until then, or until ``enough_after``, it waits for all.
    :param enough_after: seconds, or a timedelta, after which ``min_fraction`` is enough (templated); counted from the
        same start as ``timeout``. By default it is enough at the deadline alone.
    :param project_id: the project (templated); before ``update``'s, like the next.
    :param org_id: the organization (templated).
    :param min_objects: fresh objects that are required for each patient (templated).
    :param marker: the name of the file that ends a delivery, or its ending where it begins with a dot; a fresh one
        is then required instead of ``quiet_period``, and isn't counted (templated).
    :param quiet_period: seconds, or a timedelta, since a patient's newest object; 300 by default (templated).
    :param clock_skew: seconds, or a timedelta, by which S3's clock may be behind HealthEx's; 2 by default (templated).
    :param manifest_key: a key to write a JSON line for each object of those who arrived to (templated); may contain
        ``{orgId}`` and ``{projectId}``. It takes one more listing, on the worker.
    :param wildcard_match: read ``bucket_key`` as a glob.
    :param deferrable: wait on the triggerer.
    :param aws_conn_id: the AWS connection (templated).
    :param poke_interval: seconds between two pokes, 120 by default.
    :param timeout: seconds until the deadline, 24 hours by default; there is one last poke then. ``soft_fail`` turns
        its failure into a skip, and no other.
    :param map_index_template: Airflow's, for mapped tasks: their name in the UI, ``chunk 3`` by default. Below Airflow
        3.3, the default names those in a mapped task group alone.
    :returns: ``bucket``, ``arrived``: for each ``patient_id``, ``prefix``, ``object_count``, ``last_modified``;
        ``missing``: the ids of the others; ``arrived_count``, ``missing_count``, ``manifest``. If nobody is in
        progress it succeeds at once, with empty lists: whether that is a failure was the operator's decision.
    :raises HealthExConfigurationError: on construction, for an argument that can't be used.
    :raises AirflowFailException: from the typed error, for a permanent one.
    :raises AirflowSensorTimeout: where fewer than ``min_fraction`` arrived in time.
    :raises AirflowTaskTimeout: where ``execution_timeout`` ended the wait.
    """

    refused_arguments: ClassVar[Mapping[str, str]] = {**REFUSED_ARGUMENTS, **COHORT_REFUSED}
    trigger_class = HealthExDataArrivalTrigger
    deferral_grace = GRACE
    event_keys = COHORT_EVENT_KEYS
    template_fields: Sequence[str] = aws_template_fields(
        "bucket_key",
        "bucket_name",
        "update",
        "project_id",
        "org_id",
        "manifest_key",
        "min_fraction",
        "enough_after",
        *RULE_FIELDS,
    )

    def __init__(
        self,
        *,
        update: Any,
        bucket_key: str | XComArg,
        bucket_name: str | XComArg | None = None,
        min_fraction: float | str | XComArg = 1.0,
        enough_after: timedelta | float | str | XComArg | None = None,
        project_id: str | XComArg | None = None,
        org_id: str | XComArg | None = None,
        min_objects: int | str | XComArg = 1,
        marker: str | XComArg | None = None,
        quiet_period: timedelta | float | str | XComArg = 300,
        clock_skew: timedelta | float | str | XComArg = 2,
        manifest_key: str | XComArg | None = None,
        wildcard_match: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: timedelta | float = 120,
        timeout: timedelta | float = 24 * 60 * 60,
        map_index_template: str | None = CHUNK_NAME,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            bucket_key=bucket_key,
            bucket_name=bucket_name,
            wildcard_match=wildcard_match,
            deferrable=deferrable,
            poke_interval=poke_interval,
            timeout=timeout,
            map_index_template=map_index_template,
            **kwargs,
        )
        name_chunks_alone(self)
        self.update = update
        self.gets_update = update is not None
        self.min_fraction = min_fraction
        self.enough_after = plain_seconds(enough_after)
        self.project_id: Any = project_id
        self.org_id: Any = org_id
        self.min_objects = min_objects
        self.marker = marker
        self.quiet_period = plain_seconds(quiet_period)
        self.clock_skew = plain_seconds(clock_skew)
        self.manifest_key: Any = manifest_key
        self._check_arguments()

    def _check_literals(self) -> None:
        paths = check_literals(self)
        if isinstance(self.bucket_key, (list, tuple)):
            one_path("bucket_key", self.bucket_key)
        check_cohort(self, paths, ("manifest_key", self.manifest_key))

    def _min_fraction(self) -> tuple[float, float | None]:
        return enough(self)

    def _await(self, since: str | None) -> Awaited:
        bucket, paths = open_bucket(self)
        return await_cohort(self, bucket, one_path("bucket_key", paths), ("manifest_key", self.manifest_key))

    def _timeout_verdict(self, arrived: Collection[int]) -> str:
        return cohort_verdict(self, self._awaited, arrived)
