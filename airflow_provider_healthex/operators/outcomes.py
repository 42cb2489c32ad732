"""The outcome of each patient: what a retry does about it, and a cohort's form of it in logs and in the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_healthex.client import PATIENT_ACTION_NEEDED, PatientUpdate, PatientUpdateFailure
from airflow_provider_healthex.exceptions import (
    HealthExNotFoundError,
    HealthExRequestError,
    HealthExUpdateAmbiguousError,
)

ACCEPTED = "accepted"
NEEDS_PATIENT_ACTION = "needs_patient_action"
AMBIGUOUS = "ambiguous"
FAILED = "failed"
NOT_REQUESTED = "not_requested"

#: Patients whose ids a message shows.
SHOWN = 5


@dataclass(frozen=True)
class PatientOutcome:
    """
    The outcome of one patient.

    :param kind: one of the constants above.
    :param requested_at: the moment of a request that is accepted or ambiguous: ISO 8601, UTC, whole seconds.
    :param reason: why patient action is needed.
    :param status_code: of the error, where the service answered one.
    :param error: the error's class name.
    :param retryable: whether another request may help: not where HealthEx rejected this patient.
    :param answer: HealthEx's answer as JSON text, where a retry returns it.
    """

    patient_id: str
    kind: str
    requested_at: str | None = None
    reason: str | None = None
    status_code: int | None = None
    error: str | None = None
    retryable: bool = False
    answer: str | None = None

    @classmethod
    def of(cls, answer: PatientUpdate | PatientUpdateFailure, ambiguous_since: str | None) -> PatientOutcome:
        """
        Return the outcome of a request.

        :param ambiguous_since: ``requested_at`` of an earlier, ambiguous request for the patient. It stays the
            patient's ``requested_at``; and an error of the later request leaves the earlier one ambiguous.
        """
        patient_id = answer.patient_id
        requested_at = ambiguous_since or answer.to_dict()["requested_at"]
        if isinstance(answer, PatientUpdate):
            if answer.message == PATIENT_ACTION_NEEDED:
                return cls(patient_id, NEEDS_PATIENT_ACTION, reason=answer.patient_action_needed_reason)
            return cls(patient_id, ACCEPTED, requested_at=requested_at)
        status_code = getattr(answer.error, "status_code", None)
        if ambiguous_since or isinstance(answer.error, HealthExUpdateAmbiguousError):
            return cls.ambiguous(patient_id, requested_at, status_code)
        return cls(
            patient_id,
            FAILED,
            status_code=status_code,
            error=type(answer.error).__name__,
            retryable=not isinstance(answer.error, (HealthExNotFoundError, HealthExRequestError)),
        )

    @classmethod
    def ambiguous(cls, patient_id: str, requested_at: str | None, status_code: int | None = None) -> PatientOutcome:
        """Return the outcome of a patient for whom nobody knows whether HealthEx accepted the request."""
        error = HealthExUpdateAmbiguousError.__name__
        return cls(patient_id, AMBIGUOUS, requested_at=requested_at, status_code=status_code, error=error)

    def may_be_requested(self, on_ambiguous: str) -> bool:
        """Whether a retry requests the patient."""
        if self.kind == AMBIGUOUS:
            return on_ambiguous == "retry"
        return self.retryable or self.kind == NOT_REQUESTED

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form, by patient: without the id, and without what is empty."""
        return {name: value for name, value in asdict(self).items() if value and name != "patient_id"}

    @classmethod
    def from_record(cls, patient_id: str, record: Mapping[str, Any]) -> PatientOutcome:
        """Read what `to_record` returned."""
        return cls(patient_id, **record)


class Summary:
    """
    The outcomes of a cohort at one moment, in the cohort's order.

    :param outcomes: one for each patient.
    :param external_ids: by patient, the external id or None.
    :param assume_started: whether an ambiguous patient counts as in progress; else as failed.
    """

    def __init__(
        self, outcomes: Sequence[PatientOutcome], external_ids: Mapping[str, str | None], *, assume_started: bool
    ) -> None:
        def of(*kinds: str) -> list[PatientOutcome]:
            return [outcome for outcome in outcomes if outcome.kind in kinds]

        self._external_ids = external_ids
        self.total = len(outcomes)
        self.in_progress = of(ACCEPTED, AMBIGUOUS) if assume_started else of(ACCEPTED)
        self.failed = of(FAILED) if assume_started else of(FAILED, AMBIGUOUS)
        self.needs_patient_action = of(NEEDS_PATIENT_ACTION)
        self.ambiguous = of(AMBIGUOUS)
        self.not_requested = of(NOT_REQUESTED)

    @property
    def may_be_billed(self) -> bool:
        """Whether HealthEx accepted, or may have accepted, a request for any patient."""
        return bool(self.in_progress or self.ambiguous)

    def progress(self) -> str:
        """Return the counts in a line."""
        started, waiting, failed = len(self.in_progress), len(self.needs_patient_action), len(self.failed)
        return (
            f"{started + waiting + failed} of {self.total} requested: {started} in progress, "
            f"{waiting} {'needs' if waiting == 1 else 'need'} patient action, {failed} failed"
        )

    def failures(self) -> str:
        """Return how many failed of which error, and some of their ids."""
        counts = Counter(each.error for each in self.failed).most_common()
        return f"{', '.join(f'{count} {error}' for error, count in counts)}; {some_ids(self.failed)}"

    def to_dict(self, project_id: str, organization_id: str | None) -> dict[str, Any]:
        """Return the task's result."""
        result: dict[str, Any] = {
            "project_id": project_id,
            "organization_id": organization_id,
            # Texts of one form: the least is the earliest.
            "requested_at": min((each.requested_at for each in self.in_progress if each.requested_at), default=None),
            "in_progress": [self._in_progress(each) for each in self.in_progress],
            "patient_action_needed": [
                {"patient_id": each.patient_id, "reason": each.reason} for each in self.needs_patient_action
            ],
            "failed": [
                {"patient_id": each.patient_id, "status_code": each.status_code, "error": each.error}
                for each in self.failed
            ],
        }
        if self.not_requested:
            result["not_asked"] = [each.patient_id for each in self.not_requested]
        return result

    def _in_progress(self, outcome: PatientOutcome) -> dict[str, Any]:
        entry: dict[str, Any] = {"patient_id": outcome.patient_id}
        if outcome.requested_at:
            entry["requested_at"] = outcome.requested_at
        external_id = self._external_ids[outcome.patient_id]
        if external_id is not None:
            entry["external_id"] = external_id
        if outcome.kind == AMBIGUOUS:
            entry["ambiguous"] = True
        return entry


def some_ids(outcomes: Sequence[PatientOutcome]) -> str:
    """Return the first ids, and how many more there are."""
    ids = ", ".join(repr(each.patient_id) for each in outcomes[:SHOWN])
    return ids + (f" and {len(outcomes) - SHOWN} more" if len(outcomes) > SHOWN else "")
