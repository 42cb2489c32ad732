"""HealthEx's answers as values: parsed with tolerance, and harmless to log, store or render."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

from airflow_provider_healthex.client.redaction import clean
from airflow_provider_healthex.exceptions import HealthExError

IN_PROGRESS = "IN_PROGRESS_NO_ACTION_NEEDED"
PATIENT_ACTION_NEEDED = "PATIENT_ACTION_NEEDED"
UNRECOGNIZED = "UNRECOGNIZED"

#: The only consent type that allows a refresh (docs.healthex.io).
CONSENT_TYPE = "PATIENT_DIRECTED_DATA_EXCHANGE"

#: The keys of ``counts`` that docs.healthex.io documents.
COUNTS = (
    "skippedExistingFacilities",
    "changedExistingFacilities",
    "unchangedExistingFacilities",
    "retrievedNewFacilities",
    "skippedNewFacilities",
)

#: The fields of an answer to ``$updateData`` that the guide or docs.healthex.io name.
_ANSWER = frozenset({"message", "code", "patientActionNeededReason", "skippedFacilitiesCount", "counts", "retrievalId"})

_HARMLESS = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def harmless(value: object) -> str | None:
    """
    Return a string of HealthEx that may be stored, logged and rendered, else `UNRECOGNIZED`; None stays None.

    Airflow renders mapped values once more, so a service's ``{{ … }}`` would be executed.
    """
    if value is None:
        return None
    return value if isinstance(value, str) and _HARMLESS.fullmatch(value) else UNRECOGNIZED


def number(value: object) -> float | None:
    """Return a finite number from 0 on, else None: also for JSON's booleans, which are numbers in Python."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return value if math.isfinite(value) and value >= 0 else None
    except OverflowError:  # an int with more than 308 digits
        return None


def moment(value: object) -> datetime | None:
    """
    Return a moment in UTC from an ISO text or from epoch seconds or milliseconds; None from anything else.

    HealthEx documents epoch seconds for a token's expiration, and no format for a consent's.
    """
    try:
        if isinstance(value, str) and not value.strip().isdecimal():
            found = datetime.fromisoformat(value.strip())
            found = found if found.tzinfo else found.replace(tzinfo=timezone.utc)
            found = found.astimezone(timezone.utc)
        else:
            epoch = number(float(value) if isinstance(value, str) else value)
            if epoch is None:
                return None
            # Seconds reach this number in the year 5138, milliseconds did so in 1973.
            found = datetime.fromtimestamp(epoch / 1000 if epoch >= 1e11 else epoch, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None
    return found if 1970 <= found.year < 9999 else None


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text, or None if it is unreadable."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def whole_seconds(moment: datetime) -> str:
    """Return a moment as ISO 8601 UTC in whole seconds, the form of ``requested_at`` in XCom."""
    return moment.astimezone(timezone.utc).replace(microsecond=0).isoformat()


class _ReadOnlyDict(dict[str, Any]):
    def _reject(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} can't be changed: copy it with dict()")

    __setitem__ = __delitem__ = __ior__ = _reject
    clear = pop = popitem = setdefault = update = _reject

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


class _Result(_ReadOnlyDict):
    """
    A result with its fields as attributes, which is also the dict that a downstream task gets.

    Airflow stores any dict as it is; a plain dataclass it would refuse to read again.
    """

    def __post_init__(self) -> None:
        dict.update(self, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is stored: the same keys, moments as text in whole seconds."""
        return {name: _stored(value) for name, value in self._fields().items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_fields, (type(self), self._fields())

    def _fields(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]


def _from_fields(kind: type[Any], values: Mapping[str, Any]) -> Any:
    return kind(**values)


def _stored(value: Any) -> Any:
    if isinstance(value, datetime):
        return whole_seconds(value)
    return dict(value) if isinstance(value, dict) else value


@dataclass(frozen=True)
class PatientUpdate(_Result):
    """
    HealthEx's answer to one ``$updateData``; as a dict, the ``update`` of a sensor.

    :param organization_id: the connection's ``org_id``, else the token's ``organizationId`` claim, else None.
    :param message: ``IN_PROGRESS_NO_ACTION_NEEDED`` or ``PATIENT_ACTION_NEEDED`` (official guide).
    :param patient_action_needed_reason: why HealthEx needs patient action, or None.
    :param retrieval_id: HealthEx's id of the retrieval, or None: it is optional.
    :param skipped_facilities_count: facilities left out; above 0 the update is partial.
    :param counts: the documented counts the answer had. Whether they are final by then is unknown.
    :param requested_at: the moment of the request, UTC in whole seconds: later data is fresh.
    :param unknown_fields: names of fields of the answer that no public page has; not in the dict.
    """

    project_id: str
    patient_id: str
    organization_id: str | None
    message: str
    patient_action_needed_reason: str | None
    retrieval_id: str | None
    skipped_facilities_count: int
    counts: Mapping[str, float] = field(hash=False)
    requested_at: datetime
    unknown_fields: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", _ReadOnlyDict(self.counts))
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return {name: value for name, value in super().to_dict().items() if name != "unknown_fields"}

    @property
    def needs_patient(self) -> bool:
        """Whether no data comes before the patient has acted."""
        return self.message == PATIENT_ACTION_NEEDED

    @classmethod
    def from_answer(
        cls,
        answer: object,
        *,
        project_id: str,
        patient_id: str,
        organization_id: str | None,
        requested_at: datetime,
    ) -> PatientUpdate | None:
        """Read an answer; None if it has no documented message."""
        if not isinstance(answer, Mapping) or answer.get("message") not in (IN_PROGRESS, PATIENT_ACTION_NEEDED):
            return None
        counts = answer.get("counts")
        given = {key: number(counts.get(key)) for key in COUNTS} if isinstance(counts, Mapping) else {}
        return cls(
            project_id=project_id,
            patient_id=patient_id,
            organization_id=organization_id,
            message=answer["message"],
            patient_action_needed_reason=harmless(answer.get("patientActionNeededReason")),
            retrieval_id=harmless(answer.get("retrievalId")),
            skipped_facilities_count=_count(answer.get("skippedFacilitiesCount"), 0),
            counts={key: value for key, value in given.items() if value is not None},
            requested_at=requested_at,
            unknown_fields=tuple(sorted({harmless(name) or UNRECOGNIZED for name in answer.keys() - _ANSWER})),
        )


@dataclass(frozen=True)
class PatientUpdateFailure(_Result):
    """
    One patient of many whose update was rejected, ambiguous or not sent. The dict has none of HealthEx's words.

    :param error: what `HealthExClient.update_patient` raises for this patient alone.
    """

    project_id: str
    patient_id: str
    error: HealthExError

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is stored; ``requested_at`` is that of an ambiguous update."""
        return {
            "project_id": self.project_id,
            "patient_id": self.patient_id,
            "status_code": getattr(self.error, "status_code", None),
            "error": type(self.error).__name__,
            "requested_at": _stored(getattr(self.error, "requested_at", None)),
        }


@dataclass(frozen=True)
class AddPatientsResult(_Result):
    """
    The result for each patient that was added: some may fail although the call succeeds.

    Patients are named by their index in the request, so that no name or address is kept. The dict lacks the reasons
    of errors: HealthEx may repeat a patient's data there in another spelling than was sent.

    :param success_count: added or updated.
    :param duplicates_count: known already.
    :param errors: the index and the reason of each rejected patient, without what was sent of the patient.
    :param duplicates: indexes, as far as HealthEx reported any: their form is undocumented.
    :param successful_patients: the index and the ``referenceId`` of each.
    """

    total_processed: int
    success_count: int
    error_count: int
    duplicates_count: int
    errors: tuple[tuple[int | None, str], ...]
    duplicates: tuple[int, ...]
    successful_patients: tuple[tuple[int | None, str | None], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return {
            **super().to_dict(),
            "errors": [{"patient_index": index} for index, _ in self.errors],
            "duplicates": list(self.duplicates),
            "successful_patients": [
                {"patient_index": index, "reference_id": reference_id}
                for index, reference_id in self.successful_patients
            ],
        }

    @classmethod
    def from_answer(
        cls, answer: Mapping[str, Any], *, secrets: Iterable[str] = (), personal: Sequence[Sequence[str]] = ()
    ) -> AddPatientsResult:
        """
        Read an answer.

        :param secrets: what no error's text may show.
        :param personal: what was sent of each patient, and that patient's error may not show.
        """
        known = tuple(secrets)
        errors = tuple(_error(row, known, personal) for row in _rows(answer.get("errors")))
        successes = tuple(
            (_index(row.get("patientIndex")), harmless(row.get("referenceId")))
            for row in _rows(answer.get("successfulPatients"))
        )
        duplicates = answer.get("duplicates")
        duplicates = duplicates if isinstance(duplicates, list) else []
        indexes = (_index(row.get("patientIndex") if isinstance(row, Mapping) else row) for row in duplicates)
        success_count = _count(answer.get("successCount"), len(successes))
        error_count = _count(answer.get("errorCount"), len(errors))
        return cls(
            total_processed=_count(answer.get("totalProcessed"), success_count + error_count),
            success_count=success_count,
            error_count=error_count,
            duplicates_count=_count(answer.get("duplicatesCount"), len(duplicates)),
            errors=errors,
            duplicates=tuple(index for index in indexes if index is not None),
            successful_patients=successes,
        )


@dataclass(frozen=True)
class ConsentedPatient(_Result):
    """
    A patient who has consented to a project, and may be refreshed.

    :param expires_at: UTC: when the last of these consents expires; None if it is unknown.
    """

    patient_id: str
    healthcare_organization_id: str | None
    expires_at: datetime | None


def consented_patients(answer: Iterable[object], project_id: str) -> tuple[list[ConsentedPatient], int]:
    """
    Read the patients who consented to a project, one entry for each, in HealthEx's order.

    :returns: the patients, and how many were left out because their id can't be rendered or used in a path.
    """
    patients: dict[str, ConsentedPatient] = {}
    left_out = 0
    for row in _rows(answer):
        consents = [each for each in _rows(row.get("consents")) if _allows(each, project_id)]
        if not consents:
            continue
        patient_id = row.get("patientId")
        if not isinstance(patient_id, str) or harmless(patient_id) != patient_id or patient_id in (".", ".."):
            left_out += 1
            continue
        ends = [moment(each.get("expirationTimestamp")) for each in consents]
        earlier = patients.get(patient_id)
        if earlier:
            ends.append(earlier.expires_at)
        patients[patient_id] = ConsentedPatient(
            patient_id=patient_id,
            healthcare_organization_id=earlier.healthcare_organization_id
            if earlier
            else harmless(row.get("healthcareOrganizationId")),
            expires_at=max((end for end in ends if end is not None), default=None),
        )
    return list(patients.values()), left_out


def _allows(consent: Mapping[str, Any], project_id: str) -> bool:
    # The request names this study and type: they hold where the answer doesn't repeat them.
    return (
        consent.get("hasPatientConsented") is True
        and consent.get("studyId") in (None, project_id)
        and consent.get("consentType") in (None, CONSENT_TYPE)
    )


def _rows(value: object) -> Iterator[Mapping[str, Any]]:
    return (row for row in value if isinstance(row, Mapping)) if isinstance(value, list) else iter(())


def _index(value: object) -> int | None:
    index = number(value)
    return None if index is None else int(index)


def _count(value: object, default: int) -> int:
    count = number(value)
    return default if count is None else int(count)


def _error(row: Mapping[str, Any], secrets: Sequence[str], personal: Sequence[Sequence[str]]) -> tuple[int | None, str]:
    index, text = _index(row.get("patientIndex")), row.get("error")
    of_whom = [personal[index]] if index is not None and index < len(personal) else personal
    hidden = (value for each in of_whom for value in each)
    return index, clean(text, (*secrets, *hidden)) if isinstance(text, str) else ""
