"""The outcome of each patient of a cohort, what a retry does about it, and the form it has in a task's result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_provider_healthex.client import PatientUpdate, PatientUpdateFailure
from airflow_provider_healthex.client.models import whole_seconds
from airflow_provider_healthex.exceptions import (
    HealthExNotFoundError,
    HealthExRequestError,
    HealthExUpdateAmbiguousError,
)

IN_PROGRESS = "in_progress"
NEEDS_PATIENT = "needs_patient"
AMBIGUOUS = "ambiguous"
FAILED = "failed"
NOT_REQUESTED = "not_requested"

#: Patients whose ids a message shows.
SHOWN = 5


@dataclass(frozen=True)
class Outcome:
    """
    The outcome of one patient.

    :param kind: ``in_progress``, ``needs_patient``, ``ambiguous``, ``failed`` or ``not_requested``.
    :param requested_at: the moment of the request where a delivery may come, UTC in whole seconds.
    :param reason: why patient action is needed.
    :param status_code: of the error, where the service answered one.
    :param error: the error's class name.
    :param again: whether another request may help; not where the service rejected this patient.
    """

    patient_id: str
    kind: str
    requested_at: datetime | None = None
    reason: str | None = None
    status_code: int | None = None
    error: str | None = None
    again: bool = False

    @classmethod
    def of(cls, came: PatientUpdate | PatientUpdateFailure, may_have_started_at: datetime | None) -> Outcome:
        """
        Return the outcome of a request.

        :param may_have_started_at: ``requested_at`` of an earlier, ambiguous update of the patient. It stays the
            patient's ``requested_at``; and an error of the later one doesn't mean that the earlier one didn't start.
        """
        if isinstance(came, PatientUpdate):
            if came.needs_patient:
                return cls(came.patient_id, NEEDS_PATIENT, reason=came.patient_action_needed_reason)
            return cls(came.patient_id, IN_PROGRESS, requested_at=may_have_started_at or came.requested_at)
        error = came.error
        status_code = getattr(error, "status_code", None)
        if may_have_started_at or isinstance(error, HealthExUpdateAmbiguousError):
            since = may_have_started_at or getattr(error, "requested_at", None)
            return cls(came.patient_id, AMBIGUOUS, requested_at=since, status_code=status_code)
        return cls(
            came.patient_id,
            FAILED,
            status_code=status_code,
            error=type(error).__name__,
            again=not isinstance(error, (HealthExNotFoundError, HealthExRequestError)),
        )

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form, without what is empty."""
        record = {
            "kind": self.kind,
            "requested_at": whole_seconds(self.requested_at) if self.requested_at else None,
            "reason": self.reason,
            "status_code": self.status_code,
            "error": self.error,
            "again": self.again,
        }
        return {key: value for key, value in record.items() if value}

    @classmethod
    def from_record(cls, patient_id: str, record: Mapping[str, Any]) -> Outcome:
        """Read what `to_record` returned."""
        since = record.get("requested_at")
        return cls(patient_id, **{**record, "requested_at": datetime.fromisoformat(since) if since else None})


@dataclass(frozen=True)
class Summary:
    """
    The outcomes of a cohort, in the cohort's order, as ``on_ambiguous`` has them.

    :param external_ids: of every patient of the cohort the external id, or None.
    :param outcomes: by patient; a patient without one was not requested.
    :param assume_started: whether an ambiguous update counts as in progress; else it counts as failed.
    """

    external_ids: Mapping[str, str | None]
    outcomes: Mapping[str, Outcome]
    assume_started: bool

    def of_kind(self, *kinds: str) -> list[Outcome]:
        """Return the outcomes of these kinds."""
        found = (self.outcomes.get(each) or Outcome(each, NOT_REQUESTED) for each in self.external_ids)
        return [outcome for outcome in found if outcome.kind in kinds]

    @property
    def in_progress(self) -> list[Outcome]:
        """Patients whose data can be waited for."""
        return self.of_kind(IN_PROGRESS, *((AMBIGUOUS,) if self.assume_started else ()))

    @property
    def failed(self) -> list[Outcome]:
        """Patients whose update has failed."""
        return self.of_kind(FAILED, *(() if self.assume_started else (AMBIGUOUS,)))

    @property
    def may_have_started(self) -> bool:
        """Whether HealthEx may bill anything for this cohort."""
        return bool(self.of_kind(IN_PROGRESS, AMBIGUOUS))

    def progress(self) -> str:
        """Return the counts in a line."""
        started, waiting, failed = len(self.in_progress), len(self.of_kind(NEEDS_PATIENT)), len(self.failed)
        return (
            f"{started + waiting + failed} of {len(self.external_ids)} requested: {started} in progress, "
            f"{waiting} need patient action, {failed} failed"
        )

    def failures(self) -> str:
        """Return how many failed of what, and some of them by id."""
        names = Counter(each.error or HealthExUpdateAmbiguousError.__name__ for each in self.failed)
        counts = ", ".join(f"{count} {name}" for name, count in names.most_common())
        return f"{counts}; {shown(each.patient_id for each in self.failed)}"

    def to_dict(self, project_id: str, organization_id: str | None) -> dict[str, Any]:
        """Return the XCom form."""
        started = self.in_progress
        moments = [each.requested_at for each in started if each.requested_at]
        not_requested = [each.patient_id for each in self.of_kind(NOT_REQUESTED)]
        return {
            "project_id": project_id,
            "organization_id": organization_id,
            "requested_at": whole_seconds(min(moments)) if moments else None,
            "in_progress": [self._started(each) for each in started],
            "patient_action_needed": [
                {"patient_id": each.patient_id, "reason": each.reason} for each in self.of_kind(NEEDS_PATIENT)
            ],
            "failed": [
                {
                    "patient_id": each.patient_id,
                    "status_code": each.status_code,
                    "error": each.error or HealthExUpdateAmbiguousError.__name__,
                }
                for each in self.failed
            ],
            **({"not_asked": not_requested} if not_requested else {}),
        }

    def _started(self, outcome: Outcome) -> dict[str, Any]:
        entry: dict[str, Any] = {"patient_id": outcome.patient_id}
        if outcome.requested_at:
            entry["requested_at"] = whole_seconds(outcome.requested_at)
        external_id = self.external_ids[outcome.patient_id]
        if external_id is not None:
            entry["external_id"] = external_id
        if outcome.kind == AMBIGUOUS:
            entry["ambiguous"] = True
        return entry


def shown(patient_ids: Iterable[str]) -> str:
    """Return some of the ids."""
    ids = list(patient_ids)
    return ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
