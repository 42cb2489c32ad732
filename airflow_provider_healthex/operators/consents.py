"""Lists the patients to refresh, as input for a cohort operator: who has consented, or whose delivery is old."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from airflow.providers.common.compat.sdk import conf

from airflow_provider_healthex.arguments import at_least, seconds
from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient, Plan, Waiting, expand
from airflow_provider_healthex.delivery.newest import NewestObjects, newest_objects
from airflow_provider_healthex.delivery.template import variables
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExConnectionError
from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.links.healthex import HealthExProjectLink
from airflow_provider_healthex.operators.base import HealthExOperator, fail_on_permanent_errors
from airflow_provider_healthex.sensors.checks import known, plain_seconds, refuse_pasted_templates
from airflow_provider_healthex.sensors.request import cohort_path

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

_T = TypeVar("_T")

#: Before every delivery.
_EPOCH = datetime(1970, 1, 2, tzinfo=timezone.utc)


class HealthExListConsentedPatientsOperator(HealthExOperator):
    """
    Lists the patients who have consented to a project, by id.

    With ``chunk_size`` the output is what a cohort operator is mapped over: ``.expand(patient_ids=listed.output)``.

    :param project_id: the project, default the connection's (templated).
    :param min_days_left: leave out patients whose consent ends within this many days; with 0, those whose consent has
        ended. Patients for whom HealthEx reports no end stay in: a request after the end of a consent is answered
        with ``PATIENT_ACTION_NEEDED``.
    :param chunk_size: patients in a chunk; None: one list. Airflow maps over ``[core] max_map_length`` chunks at
        most (1,024 by default).
    :param healthex_conn_id: the Airflow connection (templated).
    :returns: the ids, sorted, as a list, or with ``chunk_size`` as a list of lists.
    :raises AirflowFailException: from the typed error, for permanent errors.
    :raises HealthExError: for transient errors; Airflow may retry.
    """

    template_fields: Sequence[str] = ("project_id", "healthex_conn_id")
    operator_extra_links = (HealthExProjectLink(),)
    ui_color = "#d9ebf7"

    def __init__(
        self,
        *,
        project_id: str | XComArg | None = None,
        min_days_left: float = 0,
        chunk_size: int | None = None,
        healthex_conn_id: str | XComArg = HealthExHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.check_project_id(project_id)
        self.project_id = project_id
        self.min_days_left = at_least("min_days_left", min_days_left, 0, " days")
        if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
            raise HealthExConfigurationError(f"chunk_size must be a whole number from 1, or None (got {chunk_size!r})")
        self.chunk_size = chunk_size
        self.healthex_conn_id = healthex_conn_id

    def execute(self, context: Context) -> list[str] | list[list[str]]:
        """List them."""
        with fail_on_permanent_errors():
            ids = self._select(self.resolve_project_id())
        return ids if self.chunk_size is None else self._chunks(ids, self.chunk_size)

    def _select(self, project_id: str) -> list[str]:
        patients = self.hook.list_consented_patients(project_id=project_id)
        end = datetime.now(timezone.utc) + timedelta(days=self.min_days_left)
        ids = sorted(each.patient_id for each in patients if each.expires_at is None or each.expires_at > end)
        self.log.info(
            "%d of %d consented patients listed. Consent ends within %g days, left out: %d. No end reported: %d",
            len(ids),
            len(patients),
            self.min_days_left,
            len(patients) - len(ids),
            sum(each.expires_at is None for each in patients),
        )
        return ids

    def _chunks(self, ids: list[str], size: int) -> list[list[str]]:
        chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
        limit = conf.getint("core", "max_map_length", fallback=1024)
        if len(chunks) > limit:
            self.log.warning(
                "Too many chunks: %d, and Airflow maps over at most %d. Set chunk_size to %d or more",
                len(chunks),
                limit,
                -(-len(ids) // limit),
            )
        return chunks


class DeliveryStorage(Protocol):
    """Where deliveries land, as a worker lists it."""

    @property
    def listing(self) -> Any:
        """How a wait lists this storage: makes a `Listing`."""

    def run(self, plan: Plan[_T]) -> _T | Waiting:
        """Make a plan's requests and return what they show."""


class StalePatientsOperator(HealthExListConsentedPatientsOperator):
    """The part of listing stale patients that S3 and SFTP share; subclasses name the storage and the path."""

    max_age: Any
    wildcard_match: bool
    #: Seconds by which the storage's clock may be off.
    clock_skew = 0.0

    def _open(self) -> tuple[DeliveryStorage, str]:
        """Return the storage and the path template in it."""
        raise NotImplementedError

    def _check(self, path: Any) -> None:
        """Refuse at parse time what is wrong with literal arguments."""
        refuse_pasted_templates(path)
        if self.is_known_when_parsed(path):
            _usable_path(path)
        if self.is_known_when_parsed(self.max_age):
            seconds("max_age", known(self.max_age, 0))

    def _select(self, project_id: str) -> list[str]:
        storage, path = self._open()
        path, max_age = _usable_path(path), seconds("max_age", self.max_age)
        ids = super()._select(project_id)
        values: dict[str, str | None] = {"projectId": project_id}
        if "orgId" in variables(path):
            values["orgId"] = self.hook.get_conn().organization_id
        usable = [id_ for id_ in ids if self._has_path(path, values, id_)]
        if not usable:
            return ids
        rule = ArrivalRule(quiet_period=max_age, clock_skew=self.clock_skew)
        patients = tuple(Patient(id_, _EPOCH) for id_ in usable)
        wait = ArrivalWait(Expectation((path,), values, patients, rule, self.wildcard_match), storage.listing)
        seen = storage.run(newest_objects(wait))
        if isinstance(seen, Waiting):
            raise HealthExConnectionError(f"{seen.error}: nothing is listed, and it is safe to retry")
        return self._stale(ids, usable, seen, rule)

    def _has_path(self, path: str, values: dict[str, str | None], id_: str) -> bool:
        expand(path, {**values, "healthexPatientId": "any"}, wildcard=self.wildcard_match)
        try:
            expand(path, {**values, "healthexPatientId": id_}, wildcard=self.wildcard_match)
        except HealthExConfigurationError:  # such as "a..b": nothing can have been delivered for it
            return False
        return True

    def _stale(self, ids: list[str], usable: list[str], seen: NewestObjects, rule: ArrivalRule) -> list[str]:
        newest = {usable[index]: one for index, one in seen.found.items()}
        hidden = {usable[index] for index in seen.hidden}
        old = [id_ for id_, one in newest.items() if rule.is_settled(one.age)]
        old.sort(key=lambda id_: (-newest[id_].last_modified.timestamp(), id_))
        missing = [id_ for id_ in ids if id_ not in newest and id_ not in hidden]
        self.log.info(
            "%d of %d patients are stale: %d without a delivery, %d whose newest object is at least %g s old",
            len(old) + len(missing), len(ids), len(missing), len(old), rule.quiet_period,
        )  # fmt: skip
        if seen.remark or hidden:
            self.log.warning("The listing is not whole%s. Patients who can't be seen, left out: %d", seen.remark,
                             len(hidden))  # fmt: skip
        return [*old, *missing]


def _usable_path(path: str) -> str:
    path = cohort_path(path)
    if "externalId" in variables(path):
        raise HealthExConfigurationError(
            f"The path {path!r} needs {{externalId}}, which HealthEx's list of consents does not have: list stale "
            "patients only where the path has {healthexPatientId} and no {externalId}."
        )
    return path


class HealthExListStalePatientsOperator(StalePatientsOperator):
    """
    Lists the consented patients for whom nothing was delivered to a bucket lately: a drop-in for
    `HealthExListConsentedPatientsOperator`.

    A patient is stale without an object under the path, or if the newest one is at least ``max_age`` old by S3's clock;
    folder markers don't count. So a DAG that runs twice, is cleared, or catches up on a missed interval doesn't request
    again, and bill, what was just delivered. Two runs within minutes are not protected, as nothing has landed yet: set
    ``max_active_runs=1`` as well. A patient for whom HealthEx delivers nothing (because nothing changed) stays stale.

    The bucket is listed as `HealthExCohortArrivalSensor` lists it, once: the patients' prefixes in key order, skipping
    what lies between.

    :param bucket_name: the bucket that HealthEx delivers to (templated); None where ``bucket_key`` is an ``s3://`` URL.
    :param bucket_key: where HealthEx delivers (templated), as the sensors take it: one string, with
        ``{healthexPatientId}``. It must not have ``{externalId}``: HealthEx's list of consents has no external ids.
    :param max_age: seconds or a timedelta (templated).
    :param wildcard_match: read ``bucket_key`` as a glob.
    :param aws_conn_id: the AWS connection (templated).
    :param project_id: the project, default the connection's (templated).
    :param min_days_left: leave out patients whose consent ends within this many days; 0 by default.
    :param chunk_size: patients in a chunk; None: one list.
    :param healthex_conn_id: the Airflow connection to HealthEx (templated).
    :returns: the ids as a list, or with ``chunk_size`` as a list of lists: those with the newest object first, then by
        age, and those without one last; equal ones by id.
    :raises HealthExConfigurationError: on construction, for an argument that can't be used.
    :raises AirflowFailException: from the typed error, for permanent errors.
    :raises HealthExError: for transient errors; Airflow may retry.
    """

    template_fields: Sequence[str] = (
        *HealthExListConsentedPatientsOperator.template_fields,
        "bucket_name",
        "bucket_key",
        "max_age",
        "aws_conn_id",
    )

    def __init__(
        self,
        *,
        bucket_name: str | XComArg | None,
        bucket_key: str | XComArg,
        max_age: timedelta | float | str | XComArg,
        min_days_left: float = 0,
        chunk_size: int | None = None,
        project_id: str | XComArg | None = None,
        wildcard_match: bool = False,
        aws_conn_id: str | XComArg | None = "aws_default",
        healthex_conn_id: str | XComArg = HealthExHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            project_id=project_id,
            min_days_left=min_days_left,
            chunk_size=chunk_size,
            healthex_conn_id=healthex_conn_id,
            **kwargs,
        )
        self.bucket_name: Any = bucket_name
        self.bucket_key: Any = bucket_key
        self.max_age = plain_seconds(max_age)
        self.wildcard_match = wildcard_match
        self.aws_conn_id: Any = aws_conn_id
        self._check(bucket_key)

    def _open(self) -> tuple[DeliveryStorage, str]:
        # Here, as boto3 takes a while: a DAG's parser doesn't need it.
        from airflow_provider_healthex.sensors.bucket import bucket_and_paths
        from airflow_provider_healthex.storage.s3 import AwsAccess, Bucket

        name, (path,) = bucket_and_paths(self.bucket_name, [self.bucket_key])
        return Bucket(name, AwsAccess(self.aws_conn_id)), path
