"""Waiting for one patient's delivery, wherever it lands: whose it is, since when, and what is told of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_healthex.arguments import baseline, is_rendered_later, one_of
from airflow_provider_healthex.client.models import IN_PROGRESS, PATIENT_ACTION_NEEDED, whole_seconds
from airflow_provider_healthex.client.reasons import patient_action_needed
from airflow_provider_healthex.delivery import Arrived, Expectation, Target, Waiting, expand
from airflow_provider_healthex.delivery.manifest import manifest_lines
from airflow_provider_healthex.delivery.template import names_patient
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.sensors.arrival import (
    STAND_IN,
    ArrivalSensor,
    Rule,
    Storage,
    Wait,
    known,
    no_result,
    recognized,
    refuse_moving,
    short,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

ON_PATIENT_ACTION = ("fail", "skip", "wait")
MAX_KEYS = 1_000

#: What downstream DAGs are told by asset events: neither keys nor ids.
_EVENT_EXTRA = ("object_count", "total_bytes", "since", "first_modified", "last_modified")


class PatientArrivalSensor(ArrivalSensor):
    """The frame of the sensors for one patient: subclasses know the storage."""

    def __init__(
        self,
        *,
        update: Any,
        since: str | datetime | XComArg | None,
        patient_id: str | XComArg | None,
        project_id: str | XComArg | None,
        external_id: str | XComArg | None,
        org_id: str | XComArg | None,
        on_patient_action: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(update=update, **kwargs)
        if update is None and since is None:
            raise HealthExConfigurationError(
                f"{type(self).__name__} needs update=… (the operator's output) or since=… (a moment): the objects "
                "of an earlier delivery are there already, so that existence proves nothing."
            )
        self.since: Any = since
        self.patient_id: Any = patient_id
        self.project_id: Any = project_id
        self.external_id: Any = external_id
        self.org_id: Any = org_id
        self.on_patient_action = one_of("on_patient_action", on_patient_action, ON_PATIENT_ACTION)

    def _check_literals(self, rule: Rule) -> None:
        if self.since is not None and not is_rendered_later(self.since):
            baseline("since", self.since)
        refuse_moving(self.since, reschedule=self.reschedule and not self.deferrable)

    def _stand_in_values(self) -> dict[str, str | None]:
        """Return the values of a path's variables as far as they are known at parse time."""
        from_update = STAND_IN if self._gets_update else None
        return {
            "orgId": known(self.org_id) or from_update,
            "projectId": known(self.project_id) or from_update,
            "healthexPatientId": known(self.patient_id) or from_update,
            "externalId": known(self.external_id),
        }

    def _subject(self) -> Subject:
        """
        Return whose data is waited for.

        :raises HealthExPatientActionNeeded: with ``on_patient_action="fail"``, where the patient needs to act.
        """
        if self.update is None and self._gets_update and not self.since:
            raise no_result()
        subject = Subject.of(self.update, self)
        if subject.patient_action and self.on_patient_action != "wait":
            needed = patient_action_needed(subject.patient_id or "?", subject.patient_action_reason)
            if self.on_patient_action == "skip":
                raise AirflowSkipException(str(needed)) from needed
            raise needed
        return subject

    def _resolve_since(self, since: str) -> Wait:
        self.since = since  # a template of the current time would have moved on, and all that has arrived be stale
        return self._resolve()

    def _carried(self) -> dict[str, Any]:
        return {"since": whole_seconds(self._delivery.subject.since)}

    def _expectation(self, subject: Subject, paths: Sequence[str]) -> Expectation:
        """Return what counts as the delivery."""
        rule = self._rule()
        targets = tuple(expand(path, subject.variables, wildcard=self.wildcard_match) for path in paths)
        for target in targets:
            rule.check_kind(target)
            ids = [value for value in (subject.patient_id, subject.external_id) if value]
            if not names_patient(target.template) and not any(value in target.template for value in ids):
                self.log.warning(
                    "The path %s does not name the patient: a delivery for any patient will be taken for this one's. "
                    "Put {healthexPatientId} or {externalId} into it.",
                    target.template,
                )
        return Expectation(targets=targets, since=subject.since, **asdict(rule))

    def _manifest(self, name: str, path: str | None, subject: Subject, targets: Sequence[Target]) -> str | None:
        """Return where the manifest goes, if there shall be one."""
        return self._check_manifest(name, expand(path, subject.variables), targets) if path else None

    def _conclude_event(self, event: Mapping[str, Any], context: Context) -> dict[str, Any] | None:
        delivery: PatientWait = self._delivery
        # The triggerer has decided; here its objects are only collected, as they are too many for the database.
        verdict = self._look(delivery.collect(event))
        if isinstance(verdict, Waiting):
            self._last_poke = verdict.reason
            self.log.warning("The worker does not see what the triggerer saw, waiting again: %s", verdict.reason)
            return None
        return self._conclude(verdict, context)

    def _conclude(self, verdict: Arrived, context: Context) -> dict[str, Any]:
        delivery: PatientWait = self._delivery
        storage, manifest = delivery.storage, None
        if delivery.manifest:
            lines = manifest_lines(verdict.objects, uri=storage.uri, patient_id=delivery.subject.patient_id)
            storage.put(delivery.manifest, "".join(f"{line}\n" for line in lines).encode())
            manifest = storage.uri(delivery.manifest)
        result = delivery.result(verdict, manifest)
        self.log.info(
            "Arrived for %s: %s, %s bytes, modified %s to %s",
            delivery.name,
            f"{result['object_count']:,} object{'' if result['object_count'] == 1 else 's'}",
            f"{result['total_bytes']:,}",
            result["first_modified"],
            result["last_modified"],
        )
        self.log.debug("Keys: %s", result["keys"])
        self._tell_outlets(result, _EVENT_EXTRA, context)
        return result


@dataclass(frozen=True)
class Subject:
    """Whose data is waited for, and since when."""

    patient_id: str | None
    project_id: str | None
    org_id: str | None
    external_id: str | None
    since: datetime
    patient_action: bool = False
    patient_action_reason: str | None = None

    @classmethod
    def of(cls, update: Any, given: PatientArrivalSensor) -> Subject:
        """Combine an update with what the author gave by hand, which goes first."""
        answer = _one_update(update) if update is not None else {}
        since = given.since or answer.get("requested_at")
        if not since:
            raise HealthExConfigurationError(
                f"since is empty ({given.since!r}), and there is no update: give one of them"
            )
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
        """The values of a path's variables."""
        return {
            "orgId": self.org_id,
            "projectId": self.project_id,
            "healthexPatientId": self.patient_id,
            "externalId": self.external_id,
        }


@dataclass(frozen=True)
class PatientWait(ABC):
    """One wait, resolved."""

    storage: Storage
    expectation: Expectation
    subject: Subject
    manifest: str | None

    @property
    def name(self) -> str:
        """What logs call it."""
        return f"patient {short(self.subject.patient_id)}" if self.subject.patient_id else "a delivery"

    @property
    def place(self) -> str:
        """Where the delivery is awaited, as messages show it: without an external id."""
        first, *others = [target.template for target in self.expectation.targets]
        if self.subject.external_id:
            first = first.replace(self.subject.external_id, "{externalId}")
        for value in (self.subject.patient_id, self.subject.project_id):
            first = first.replace(value, short(value)) if value else first
        more = f" and {len(others)} more" if others else ""
        return f"{self.address(first)}{more} ({self.name})"

    @abstractmethod
    def address(self, path: str) -> str:
        """Return how messages show a path."""

    @abstractmethod
    def look(self) -> Any:
        """Return the steps of one poke."""

    @abstractmethod
    def hint(self, unmatched: int) -> Any:
        """Return the steps that find out why nothing matches a path."""

    @abstractmethod
    def collect(self, event: Mapping[str, Any]) -> Any:
        """Return the steps of one poke at what the triggerer saw."""

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what its trigger needs of it."""
        return {"expectation": self.expectation.to_dict()}

    def result(self, arrived: Arrived, manifest: str | None) -> dict[str, Any]:
        """Return the sensor's result."""
        objects = arrived.objects
        prefix = _common_prefix([target.prefix for target in self.expectation.targets])
        times = [row.last_modified for row in objects]
        return {
            "bucket": self.storage.bucket,
            "prefix": prefix,
            "uri": self.storage.uri(prefix),
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
        what = "a cohort's: HealthExCohortArrivalSensor waits for one, in S3"
    elif isinstance(update, Mapping) and {"patient_id", "project_id", "message", "requested_at"} <= update.keys():
        if update["message"] in (IN_PROGRESS, PATIENT_ACTION_NEEDED):
            return dict(update)
        what = f"a dict whose message is {update['message']!r}"
    elif isinstance(update, str):
        what = "a string: give update=refresh.output itself, not a template of it"
    elif isinstance(update, Sequence):
        what = "several: wait for each with this sensor's .partial(…).expand(update=refresh.output)"
    else:
        what = f"a {type(update).__name__}"
    raise HealthExConfigurationError(f"update must be the output of one HealthExUpdatePatientOperator, and is {what}.")


def _common_prefix(prefixes: Sequence[str]) -> str:
    if len(prefixes) == 1:
        return prefixes[0]
    return "".join(commonprefix(prefixes).rpartition("/")[:2])  # noqa: RUF071 - cut at a "/" again
