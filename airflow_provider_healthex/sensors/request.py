"""From a sensor's arguments and the operator's result to who is awaited, since when, and by which rule. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_healthex.arguments import (
    fraction,
    is_rendered_later,
    requested_at,
    seconds,
    whole_number,
)
from airflow_provider_healthex.client.models import IN_PROGRESS, PATIENT_ACTION_NEEDED
from airflow_provider_healthex.delivery import ArrivalRule, Kind, Patient, Target, expand
from airflow_provider_healthex.delivery.template import names_patient, variables
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.sensors.checks import (
    STAND_IN,
    check_update,
    file_name,
    known,
    no_result,
    recognized,
    refuse_moving,
)

#: Template fields that all sensors share.
RULE_FIELDS = ("min_objects", "marker", "quiet_period", "clock_skew")


# The rule


def arrival_rule(sensor: Any, *, parsed: bool = False) -> ArrivalRule:
    """
    Return the rule that a sensor's arguments mean.

    :param parsed: at parse time: what is rendered later excludes nothing.
    """

    def given(name: str, otherwise: Any) -> Any:
        value = getattr(sensor, name)
        return known(value, otherwise) if parsed else value

    return ArrivalRule(
        min_objects=whole_number("min_objects", given("min_objects", 1), 1),
        marker=file_name("marker", given("marker", None)),
        quiet_period=seconds("quiet_period", given("quiet_period", 0)),
        clock_skew=seconds("clock_skew", given("clock_skew", 0)),
    )


def check_targets(rule: ArrivalRule, targets: Sequence[Target]) -> None:
    """Refuse what one object can't have."""
    for target in targets:
        if target.kind is Kind.KEY and rule.marker:
            raise HealthExConfigurationError(
                f"marker={rule.marker!r} with the exact key {target.template!r}: one key can't have a marker beside "
                "it. Give the path up to its last '/', or no marker."
            )
        if target.kind is Kind.KEY and rule.min_objects > 1:
            raise HealthExConfigurationError(
                f"min_objects={rule.min_objects} with the exact key {target.template!r}, which is one object. "
                "Give a path that ends in '/', or a glob with wildcard_match=True."
            )


def manifest_key(
    name: str, path: str | None, values: Mapping[str, str | None], targets: Sequence[Target], *, shared: bool = False
) -> str | None:
    """
    Return where the manifest goes, None where none is wanted.

    :param shared: whether it is one for several patients.
    """
    if not path:
        return None
    if shared and names_patient(str(path)):
        raise HealthExConfigurationError(
            f"{name} is {path!r}: there is one manifest for the cohort, so give a key without the patient."
        )
    manifest = expand(str(path), values)
    if manifest.kind is Kind.PREFIX or any(target.matches(manifest.prefix) for target in targets):
        raise HealthExConfigurationError(
            f"{name} is {path!r}; give a file's whole path, outside the path that is waited for, where it would be "
            "taken for delivered data."
        )
    return manifest.prefix


# One patient


@dataclass(frozen=True)
class PatientRequest:
    """
    One patient's request, as an update and the author's arguments say.

    :param values: of the path variables that don't name the patient.
    :param patient: who is awaited, and since when.
    :param needs_action: whether HealthEx needs patient action, for this reason.
    """

    values: Mapping[str, str | None]
    patient: Patient
    needs_action: bool = False
    reason: str | None = None

    @property
    def variables(self) -> dict[str, str | None]:
        """The values of all path variables."""
        return {**self.values, **self.patient.values}


def patient_request(sensor: Any, since: str | None) -> PatientRequest:
    """
    Combine an update with the author's arguments, which go first.

    :param since: as the wait's first process rendered it: a template of the current time would have moved on.
    """
    given = since or sensor.since
    if sensor.update is None and sensor.gets_update and not given:
        raise no_result()
    answer = _one_update(sensor.update) if sensor.update is not None else {}
    moment = given or answer.get("requested_at")
    if not moment:
        raise HealthExConfigurationError(f"since is empty ({sensor.since!r}), and there is no update: give one of them")
    return PatientRequest(
        values={
            "orgId": sensor.org_id or recognized(answer.get("organization_id")),
            "projectId": sensor.project_id or answer.get("project_id"),
        },
        patient=Patient(
            patient_id=sensor.patient_id or answer.get("patient_id"),
            requested_at=requested_at("since" if given else "update['requested_at']", moment),
            external_id=sensor.external_id,
        ),
        needs_action=answer.get("message") == PATIENT_ACTION_NEEDED,
        reason=answer.get("patient_action_needed_reason"),
    )


def check_patient(sensor: Any, paths: Sequence[str], manifest: tuple[str, Any]) -> None:
    """Refuse at parse time what is wrong with the literal arguments of a sensor for one patient."""
    check_update(sensor)
    if sensor.since is not None and not is_rendered_later(sensor.since):
        requested_at("since", sensor.since)
    refuse_moving(sensor.since, reschedule=sensor.reschedule and not sensor.deferrable)
    from_update = STAND_IN if sensor.gets_update else None
    values = {
        "orgId": known(sensor.org_id) or from_update,
        "projectId": known(sensor.project_id) or from_update,
        "healthexPatientId": known(sensor.patient_id) or from_update,
        "externalId": known(sensor.external_id),
    }
    targets = [expand(path, values, wildcard=sensor.wildcard_match) for path in paths]
    check_targets(arrival_rule(sensor, parsed=True), targets)
    manifest_key(manifest[0], known(manifest[1], None), values, targets)


def _one_update(update: Any) -> dict[str, Any]:
    """Return an update's answer, or raise an error that says what it is instead."""
    if isinstance(update, Mapping) and "in_progress" in update:
        what = "a cohort's: wait for it with HealthExCohortArrivalSensor, or on SFTP HealthExSftpCohortArrivalSensor"
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


# A cohort


def cohort_patients(sensor: Any, path: str) -> tuple[dict[str, str | None], tuple[Patient, ...]]:
    """Return the shared values of the path variables, and the patients in progress in an update's order."""
    if sensor.update is None:
        raise no_result()
    answer = _one_cohort(sensor.update)
    values = {
        "projectId": sensor.project_id or answer.get("project_id"),
        "orgId": sensor.org_id or recognized(answer.get("organization_id")),
    }
    return values, _patients(answer["in_progress"], path)


def check_cohort(sensor: Any, paths: Sequence[str], manifest: tuple[str, Any]) -> None:
    """Refuse at parse time what is wrong with the literal arguments of a sensor for a cohort."""
    if sensor.update is None:
        raise _no_cohort("None")
    check_update(sensor)
    enough(sensor, parsed=True)
    values: dict[str, str | None] = {
        "projectId": known(sensor.project_id) or STAND_IN,
        "orgId": known(sensor.org_id) or STAND_IN,
        "healthexPatientId": STAND_IN,
        "externalId": STAND_IN,
    }
    targets = [expand(cohort_path(path), values, wildcard=sensor.wildcard_match) for path in paths]
    check_targets(arrival_rule(sensor, parsed=True), targets)
    manifest_key(manifest[0], known(manifest[1], None), values, targets, shared=True)


def cohort_path(path: str) -> str:
    """Return a path that names the patient."""
    if not names_patient(path):
        raise HealthExConfigurationError(
            f"The path {path!r} doesn't name the patient, so that deliveries can't be told apart: put "
            "{healthexPatientId} or {externalId} into it."
        )
    return path


def one_path(name: str, paths: Sequence[str]) -> str:
    """Return the one path of a cohort."""
    if len(paths) != 1:
        raise HealthExConfigurationError(
            f"{name} names {len(paths)} paths; a cohort is waited for on one. Give the path that all share."
        )
    return cohort_path(paths[0])


def enough(sensor: Any, *, parsed: bool = False) -> tuple[float, float | None]:
    """Return ``min_fraction`` and ``enough_after`` of a cohort's sensor, checked."""
    min_fraction, enough_after = sensor.min_fraction, sensor.enough_after
    if parsed:
        min_fraction, enough_after = known(min_fraction, 0), known(enough_after, None)
    part = fraction("min_fraction", min_fraction)
    if enough_after is None:
        return part, None
    after = seconds("enough_after", enough_after)
    if part == 1:
        raise HealthExConfigurationError(
            f"enough_after={enough_after!r} needs a min_fraction below 1: with 1 nothing less than all is enough"
        )
    if after >= sensor.timeout:
        raise HealthExConfigurationError(
            f"enough_after must be less than the timeout of {sensor.timeout:g} s, where min_fraction decides anyway "
            f"(got {enough_after!r})"
        )
    return part, after


def least(part: float, count: int) -> int:
    """Return how many patients a fraction needs: 0.7 of 10 is 7, and not 8 because of 7.000000000000001."""
    return math.ceil(part * count - 1e-9)


def _no_cohort(what: str) -> HealthExConfigurationError:
    return HealthExConfigurationError(f"update must be the output of HealthExUpdateCohortOperator, and is {what}.")


def _one_cohort(update: Any) -> dict[str, Any]:
    """Return a cohort's answer, or raise an error that says what it is instead."""
    if isinstance(update, Mapping) and "in_progress" in update:
        entries = update["in_progress"]
        if isinstance(entries, Sequence) and not isinstance(entries, str):
            return dict(update)
        what = f"a dict whose in_progress is a {type(entries).__name__}"
    elif isinstance(update, Mapping) and "patient_id" in update:
        what = "one patient's: wait for it with HealthExDataArrivalSensor, or on SFTP HealthExSftpDataArrivalSensor"
    elif isinstance(update, str):
        what = "a string: give update=refresh.output itself, not a template of it"
    elif isinstance(update, Sequence):
        what = "several: wait for each with this sensor's .partial(…).expand(update=refresh.output)"
    else:
        what = f"a {type(update).__name__}"
    raise _no_cohort(what)


def _patients(entries: Sequence[Any], path: str) -> tuple[Patient, ...]:
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
    return tuple(
        Patient(
            patient_id=entry["patient_id"],
            requested_at=requested_at("update['in_progress'][…]['requested_at']", entry["requested_at"]),
            external_id=entry["external_id"] if named else None,
        )
        for entry in whole
    )
