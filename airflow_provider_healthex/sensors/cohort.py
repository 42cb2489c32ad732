"""Waiting until the refreshed data of a cohort has landed in S3: one task and one trigger for all its patients."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import IO, TYPE_CHECKING, Any, ClassVar, cast

from airflow.providers.amazon.aws.utils.mixins import aws_template_fields
from airflow.providers.common.compat.sdk import conf

from airflow_provider_healthex.arguments import baseline, fraction, is_rendered_later, seconds
from airflow_provider_healthex.client.models import whole_seconds
from airflow_provider_healthex.delivery import (
    AllSettled,
    CohortExpectation,
    CohortWait,
    Member,
    Settled,
    StoredObject,
    Waiting,
    expand,
)
from airflow_provider_healthex.delivery.hints import bucket_hint
from airflow_provider_healthex.delivery.listing import Look
from airflow_provider_healthex.delivery.manifest import manifest_lines
from airflow_provider_healthex.delivery.template import names_patient, variables
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError
from airflow_provider_healthex.s3 import Bucket
from airflow_provider_healthex.sensors.arrival import (
    RULE_FIELDS,
    STAND_IN,
    Rule,
    known,
    no_result,
    plain_seconds,
    recognized,
)
from airflow_provider_healthex.sensors.bucket import BucketArrivalSensor, bucket_and_paths
from airflow_provider_healthex.triggers.healthex import HealthExCohortArrivalTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_healthex.delivery.schedule import PokeSchedule

#: The most patients that one task takes; and, deferred, with MySQL, whose column for a trigger holds 64 KB.
MAX_PATIENTS, MAX_PATIENTS_MYSQL = 10_000, 500

_CHUNK = "Wait for chunks of it: HealthExUpdateCohortOperator and this sensor with .expand() over lists of patients"
_FROM_UPDATE = "each patient's comes from update=…"
_MANIFEST_IN_MEMORY = 8 * 1024 * 1024  # bytes
_MISSING_LOGGED = 20
_ATTEMPTS, _PAUSE = 4, 15  # at listing what has arrived; seconds between them


class HealthExCohortArrivalSensor(BucketArrivalSensor):
    """
    Waits for a delivery newer than the request for every patient of a cohort, in S3, with one task.

    Each patient in progress is judged by their own request's time as :class:`HealthExDataArrivalSensor` does: at
    least ``min_objects`` objects modified since, and none for ``quiet_period`` seconds by S3's clock. Those who must
    act first or whose update failed aren't waited for. A patient who has arrived is not listed again.

    One poke costs about as many requests as the lesser of: the pages (1,000 objects) under the path's part that all
    share, and the missing patients. Where the patient is no literal beginning of the path (a glob stands before them)
    it costs those pages. It needs a general purpose bucket: directory buckets (S3 Express) list in no order.

    Deferred, the trigger's row holds every patient's id and seconds: up to 10,000 patients, and 500 with a MySQL
    metadata database. A worker of Airflow 3 isn't told which database there is: more than 500 are warned of there.

    :param update: the cohort operator's output, ``update=refresh.output`` (templated).
    :param bucket_key: where HealthEx delivers (templated): one string, with ``{healthexPatientId}`` or
        ``{externalId}``, which comes from the update's entries; otherwise as in :class:`HealthExDataArrivalSensor`.
    :param bucket_name: the bucket, where ``bucket_key`` is no URL (templated).
    :param min_fraction: the fraction of the patients in progress, 0 to 1, who must have arrived at the deadline for the
        task to succeed (templated). Until then, or until ``enough_after``, it waits for all.
    :param enough_after: seconds, or a timedelta, after which ``min_fraction`` is enough (templated); counted from the
        same start as ``timeout``. By default it is enough at the deadline alone.
    :param project_id: the project (templated); before ``update``'s, like the next.
    :param org_id: the organisation (templated).
    :param min_objects: fresh objects that are required for each patient (templated).
    :param marker: the name of the file that ends a delivery, or its ending where it begins with a dot; a fresh one
        is then required instead of ``quiet_period``, and isn't counted (templated).
    :param quiet_period: seconds, or a timedelta, since a patient's newest object; 300 by default (templated).
    :param clock_skew: seconds, or a timedelta, by which S3's clock may be behind HealthEx's; 2 by default (templated).
    :param manifest_key: a key to write a JSON line for each object of those who arrived to (templated); may contain
        ``{orgId}`` and ``{projectId}``. It costs one more listing, on the worker.
    :param wildcard_match: read ``bucket_key`` as a glob.
    :param deferrable: wait on the triggerer.
    :param aws_conn_id: the AWS connection (templated).
    :param poke_interval: seconds between two pokes, 120 by default.
    :param timeout: seconds until the deadline, 24 hours by default; there is one last poke then. ``soft_fail`` turns
        its failure into a skip, and no other.
    :returns: ``bucket``, ``arrived``: for each ``patient_id``, ``prefix``, ``object_count``, ``last_modified``;
        ``missing``: the ids of the others; ``arrived_count``, ``missing_count``, ``manifest``. Where nobody is in
        progress it succeeds at once, with empty lists: whether that is a failure was the operator's decision.
    :raises HealthExConfigurationError: on construction, for an argument that can't be used.
    :raises AirflowFailException: from the typed error, for what waiting can't mend.
    :raises AirflowSensorTimeout: where fewer than ``min_fraction`` arrived in time.
    :raises AirflowTaskTimeout: where ``execution_timeout`` ended the wait.
    """

    trigger_class = HealthExCohortArrivalTrigger
    refused_arguments: ClassVar[Mapping[str, str]] = {
        **BucketArrivalSensor.refused_arguments,
        "since": _FROM_UPDATE,
        "patient_id": _FROM_UPDATE,
        "external_id": _FROM_UPDATE,
        "on_patient_action": "those who must act have no request of their own and aren't waited for; the operator's "
        "output lists them",
    }
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
        **kwargs: Any,
    ) -> None:
        super().__init__(
            bucket_key=bucket_key,
            bucket_name=bucket_name,
            update=update,
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
        self.min_fraction = min_fraction
        self.enough_after = plain_seconds(enough_after)
        self.project_id: Any = project_id
        self.org_id: Any = org_id
        self.manifest_key: Any = manifest_key
        self._check_arguments()

    def _check_literals(self, rule: Rule) -> None:
        if self.update is None:
            raise _no_cohort("None")
        self._check_fraction(known(self.min_fraction, 0), known(self.enough_after, None))
        paths = [_one_path(path) for path in self._literal_paths()]
        if isinstance(self.bucket_key, (list, tuple)) and len(self.bucket_key) != 1:
            raise _many_paths(len(self.bucket_key))
        values: dict[str, str | None] = {
            "projectId": known(self.project_id) or STAND_IN,
            "orgId": known(self.org_id) or STAND_IN,
            "healthexPatientId": STAND_IN,
            "externalId": STAND_IN,
        }
        self._check_paths(rule, paths, values)
        if self.manifest_key and not is_rendered_later(self.manifest_key):
            targets = [expand(path, values, wildcard=self.wildcard_match) for path in paths]
            self._check_manifest("manifest_key", self._manifest(values), targets)

    def _check_fraction(self, min_fraction: Any, enough_after: Any) -> tuple[float, float | None]:
        """Return both, checked."""
        part = fraction("min_fraction", min_fraction)
        if enough_after is None:
            return part, None
        after = seconds("enough_after", enough_after)
        if part == 1:
            raise HealthExConfigurationError(
                f"enough_after={enough_after!r} needs a min_fraction below 1: with 1 nothing less than all is enough"
            )
        if after >= self.timeout:
            raise HealthExConfigurationError(
                f"enough_after must be less than the timeout of {self.timeout:g} s, where min_fraction decides anyway "
                f"(got {enough_after!r})"
            )
        return part, after

    def _make_schedule(self, started: float, deadline: float) -> PokeSchedule:
        _, after = self._check_fraction(self.min_fraction, self.enough_after)
        schedule = super()._make_schedule(started, deadline)
        return schedule if after is None else replace(schedule, enough_at=started + after)

    def _resolve(self) -> _CohortDelivery:
        if self.update is None:
            raise no_result()
        answer = _one_cohort(self.update)
        bucket, paths = bucket_and_paths(self.bucket_name, self.bucket_key)
        if len(paths) != 1:
            raise _many_paths(len(paths))
        values = {
            "projectId": self.project_id or answer.get("project_id"),
            "orgId": self.org_id or recognized(answer.get("organization_id")),
        }
        rule = self._rule()
        since, members = _members(answer["in_progress"], _one_path(paths[0]))
        self._refuse_too_many(len(members))
        wait = CohortWait(
            CohortExpectation(
                path=paths[0],
                values=values,
                since=since,
                members=members,
                wildcard=self.wildcard_match,
                **asdict(rule),
            )
        )
        for target in wait.targets[:1]:
            rule.check_kind(target)
        manifest = (
            self._check_manifest("manifest_key", self._manifest(values), wait.targets) if self.manifest_key else None
        )
        least, _ = self._check_fraction(self.min_fraction, self.enough_after)
        return _CohortDelivery(self._bucket(bucket), wait, manifest, _least(least, len(members)))

    def _manifest(self, values: Mapping[str, str | None]) -> Any:
        key = str(self.manifest_key)
        if names_patient(key):
            raise HealthExConfigurationError(
                f"manifest_key is {key!r}: there is one manifest for the cohort, so give a key without the patient."
            )
        return expand(key, values)

    def _refuse_too_many(self, count: int) -> None:
        if count > MAX_PATIENTS:
            raise HealthExConfigurationError(
                f"The cohort has {count:,} patients in progress, more than the {MAX_PATIENTS:,} of one task. {_CHUNK}."
            )
        if count <= MAX_PATIENTS_MYSQL or not self.deferrable:
            return
        database = _database()
        limit = f"{MAX_PATIENTS_MYSQL} that a trigger's row holds with a MySQL metadata database"
        if database == "mysql":
            raise HealthExConfigurationError(
                f"The cohort has {count:,} patients in progress, more than the {limit}. {_CHUNK}, or wait with "
                "mode='reschedule'."
            )
        if database is None:
            self.log.warning("%s patients are more than the %s; if yours is one, use chunks.", f"{count:,}", limit)

    def _conclude(self, verdict: AllSettled, context: Context) -> dict[str, Any]:
        delivery: _CohortDelivery = self._delivery
        result = self._finish(delivery.wait.settled, context, least=0)
        assert result is not None
        return result

    def _conclude_event(self, event: Mapping[str, Any], context: Context) -> dict[str, Any] | None:
        arrived = self._seen_by_trigger(event)
        result = self._finish(arrived, context, least=len(arrived))
        if result is None:
            self.log.warning("Some deliveries are not there any more, waiting again.")
        return result

    def _accept(self, now: float) -> AllSettled | None:
        delivery: _CohortDelivery = self._delivery
        enough = self._schedule is not None and self._schedule.is_enough(now)
        return AllSettled() if enough and len(delivery.wait.settled) >= delivery.least else None

    def _at_timeout(self, event: Mapping[str, Any], context: Context) -> Any:
        delivery: _CohortDelivery = self._delivery
        arrived = self._seen_by_trigger(event) if "missing" in event else delivery.wait.settled
        result = self._finish(arrived, context, least=delivery.least) if len(arrived) >= delivery.least else None
        if result is None:
            self._log_missing(arrived)
            total = len(delivery.wait.targets)
            self._time_out(
                f"Only {len(arrived):,} of {total:,} patients arrived within {self.timeout:g} s, and "
                f"min_fraction={self.min_fraction} needs {delivery.least:,}, under {delivery.place}",
                str(event["message"]),
            )
        return result

    def _seen_by_trigger(self, event: Mapping[str, Any]) -> list[int]:
        missing = int(str(event.get("missing") or "0"), 16)
        return [index for index in range(len(self._delivery.wait.targets)) if not missing >> index & 1]

    def _log_missing(self, arrived: Collection[int]) -> None:
        members = self._delivery.wait.expectation.members
        missing = [member.patient_id for index, member in enumerate(members) if index not in arrived]
        self.log.error(
            "%s of %s patients are missing, and min_fraction is %s: %s%s",
            f"{len(missing):,}",
            f"{len(members):,}",
            self.min_fraction,
            ", ".join(missing[:_MISSING_LOGGED]),
            ", …" if len(missing) > _MISSING_LOGGED else "",
        )

    def _finish(self, arrived: Collection[int], context: Context, *, least: int) -> dict[str, Any] | None:
        """Return the result for those who arrived, or None where fewer than ``least`` are still there."""
        delivery: _CohortDelivery = self._delivery
        settled, manifest = delivery.wait.settled, None
        with tempfile.SpooledTemporaryFile(_MANIFEST_IN_MEMORY) as lines:
            # What the triggerer saw isn't in its event, but for who it was: it would be too much for the database.
            if delivery.manifest_key or any(index not in settled for index in arrived):
                settled = self._list_again(arrived, cast("IO[bytes]", lines))
            if len(settled) < least:
                return None
            if delivery.manifest_key:
                lines.seek(0)
                delivery.storage.put(delivery.manifest_key, cast("IO[bytes]", lines))
                manifest = delivery.storage.uri(delivery.manifest_key)
        return self._result(delivery.result(settled, manifest), context)

    def _list_again(self, arrived: Collection[int], manifest: IO[bytes]) -> dict[int, Settled]:
        """List the fresh objects of those who arrived, a manifest's line for each."""
        delivery: _CohortDelivery = self._delivery
        members = delivery.wait.expectation.members

        def sink(index: int, objects: Iterator[StoredObject]) -> None:
            if delivery.manifest_key:
                lines = manifest_lines(objects, uri=delivery.storage.uri, patient_id=members[index].patient_id)
                manifest.writelines(f"{line}\n".encode() for line in lines)

        reason = ""
        for attempt in range(_ATTEMPTS):
            time.sleep(min(self.poke_interval, _PAUSE) if attempt else 0)
            manifest.seek(0)
            manifest.truncate()
            found = self._look(delivery.wait.collect(arrived, sink))
            if not isinstance(found, Waiting):
                return cast("dict[int, Settled]", found)
            reason = found.reason
        raise HealthExError(f"{reason}: the deliveries are there, and a retry of the task lists them.")

    def _result(self, result: dict[str, Any], context: Context) -> dict[str, Any]:
        arrived, missing = result["arrived_count"], result["missing_count"]
        enough = f"; {missing:,} missing, and min_fraction={self.min_fraction} is enough" if missing else ""
        self.log.info("%s of %s patients arrived%s", f"{arrived:,}", f"{arrived + missing:,}", enough)
        self._tell_outlets(result, _EVENT_EXTRA, context)
        return result


#: What downstream DAGs are told by asset events: no ids.
_EVENT_EXTRA = ("arrived_count", "missing_count")


@dataclass(frozen=True)
class _CohortDelivery:
    """One cohort's wait, resolved."""

    storage: Bucket
    wait: CohortWait
    manifest_key: str | None
    least: int  # patients that min_fraction needs

    @property
    def name(self) -> str:
        """What logs call it."""
        count = len(self.wait.targets)
        return f"cohort of {count:,} patient{'' if count == 1 else 's'}"

    @property
    def place(self) -> str:
        """Where the deliveries are awaited, as messages show it."""
        return repr(self.storage.uri(self.wait.expectation.path))

    def look(self) -> Look[AllSettled | Waiting]:
        """Return the steps of one poke."""
        return self.wait.look()

    def hint(self, unmatched: int) -> Look[str | None]:
        """Return the steps that find out why nothing lies where the patients' paths begin."""
        return bucket_hint(self.wait.targets[unmatched], self.storage.bucket)

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what its trigger needs of it."""
        return {"expectation": self.wait.expectation.to_dict(), "least": self.least}

    def result(self, settled: Mapping[int, Settled], manifest: str | None) -> dict[str, Any]:
        """Return the sensor's result, in the update's order."""
        members = self.wait.expectation.members
        missing = [member.patient_id for index, member in enumerate(members) if index not in settled]
        return {
            "bucket": self.storage.bucket,
            "arrived": [
                {
                    "patient_id": members[index].patient_id,
                    "prefix": self.wait.targets[index].prefix,
                    "object_count": settled[index].object_count,
                    "last_modified": whole_seconds(settled[index].last_modified),
                }
                for index in sorted(settled)
            ],
            "missing": missing,
            "arrived_count": len(settled),
            "missing_count": len(missing),
            "manifest": manifest,
        }


def _least(part: float, count: int) -> int:
    """Return how many patients a fraction needs: 0.7 of 10 is 7, and not 8 because of 7.000000000000001."""
    return math.ceil(part * count - 1e-9)


def _many_paths(count: int) -> HealthExConfigurationError:
    return HealthExConfigurationError(
        f"bucket_key names {count} paths; a cohort is waited for on one. Give the path that all share."
    )


def _no_cohort(what: str) -> HealthExConfigurationError:
    return HealthExConfigurationError(f"update must be the output of HealthExUpdateCohortOperator, and is {what}.")


def _one_cohort(update: Any) -> dict[str, Any]:
    """Return a cohort's answer, and say what else it is if it isn't one."""
    if isinstance(update, Mapping) and "in_progress" in update:
        entries = update["in_progress"]
        if isinstance(entries, Sequence) and not isinstance(entries, str):
            return dict(update)
        what = f"a dict whose in_progress is a {type(entries).__name__}"
    elif isinstance(update, Mapping) and "patient_id" in update:
        what = "one patient's: wait for it with HealthExDataArrivalSensor"
    elif isinstance(update, str):
        what = "a string: give update=refresh.output itself, not a template of it"
    elif isinstance(update, Sequence):
        what = "several: wait for each with HealthExCohortArrivalSensor.partial(…).expand(update=refresh.output)"
    else:
        what = f"a {type(update).__name__}"
    raise _no_cohort(what)


def _one_path(path: str) -> str:
    """Return a path that names the patient."""
    if not names_patient(path):
        raise HealthExConfigurationError(
            f"bucket_key is {path!r}, which doesn't name the patient, so that deliveries can't be told apart: put "
            "{healthexPatientId} or {externalId} into it."
        )
    return path


def _members(entries: Sequence[Any], path: str) -> tuple[datetime, tuple[Member, ...]]:
    """Return the earliest ``requested_at``, and the patients with their seconds since it."""
    whole = [entry for entry in entries if isinstance(entry, Mapping) and entry.get("patient_id")]
    if len(whole) < len(entries) or not all(entry.get("requested_at") for entry in whole):
        raise HealthExConfigurationError(
            "update['in_progress'] has entries without patient_id or requested_at: give the operator's output as it is."
        )
    named = "externalId" in variables(path)
    nameless = sum(1 for entry in whole if not entry.get("external_id"))
    if named and nameless:
        raise HealthExConfigurationError(
            f"The path {path!r} needs {{externalId}}, and {nameless:,} of {len(whole):,} patients have none: "
            "give the cohort operator patient_ids=[{'patient_id': …, 'external_id': …}, …]."
        )
    baselines = [baseline("update['in_progress'][…]['requested_at']", entry["requested_at"]) for entry in whole]
    earliest = min(baselines, default=datetime.now(timezone.utc).replace(microsecond=0))
    return earliest, tuple(
        Member(
            patient_id=entry["patient_id"],
            offset=int((since - earliest).total_seconds()),
            external_id=entry["external_id"] if named else None,
        )
        for entry, since in zip(whole, baselines, strict=True)
    )


def _database() -> str | None:
    """Return the metadata database's kind, or None where this process isn't told: Airflow 3 hides it from workers."""
    try:
        url = conf.get("database", "sql_alchemy_conn", fallback="") or ""
    except Exception:  # the command or secret it would come from isn't the worker's to read
        return None
    kind = url.partition(":")[0].partition("+")[0].lower()
    return {"mariadb": "mysql", "mysql": "mysql", "postgresql": "postgresql", "sqlite": "sqlite"}.get(kind)
