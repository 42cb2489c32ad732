"""From a sensor's arguments and the operator's result to who is awaited, since when, and by which rule. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airflow_provider_healthex.arguments import (
    fraction,
    is_rendered_later,
    requested_at,
    seconds,
    whole_number,
)
from airflow_provider_healthex.client.models import IN_PROGRESS, PATIENT_ACTION_NEEDED, UNRECOGNIZED
from airflow_provider_healthex.delivery import ArrivalRule, Kind, Patient, Target, expand
from airflow_provider_healthex.delivery.template import names_patient, refuse_foreign_syntax, variables
from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: Templates of a moment that is another one each time that Airflow renders them.
_MOVING = re.compile(r"\b(?:ti|task_instance)\.(?:start_date|queued_dttm)\b|\b(?:utcnow|now|today)\(")

#: What stands for a value that only a template knows, in checks at parse time.
STAND_IN = "rendered-later"

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
        marker=_file_name("marker", given("marker", None)),
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


def existence_proves_nothing(sensor: Any, update: Any, since: Any) -> None:
    """Refuse a wait without a moment since which data counts."""
    if update is None and since is None:
        raise HealthExConfigurationError(
            f"{type(sensor).__name__} needs update=… (the operator's output) or since=… (a moment): the objects of an "
            "earlier delivery are there already, so that existence proves nothing."
        )


def check_patient(sensor: Any, paths: Sequence[str], manifest: tuple[str, Any]) -> None:
    """Refuse at parse time what is wrong with the literal arguments of a sensor for one patient."""
    _check_update(sensor)
    if sensor.since is not None and not is_rendered_later(sensor.since):
        requested_at("since", sensor.since)
    _refuse_moving(sensor.since, reschedule=sensor.reschedule and not sensor.deferrable)
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
    _check_update(sensor)
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


# Checks that patient and cohort share


def known(value: Any, otherwise: Any = STAND_IN) -> Any:
    """Return a literal value, and something else for one that is rendered later."""
    return otherwise if is_rendered_later(value) else value


def literals(paths: Any) -> list[Any]:
    """Return those of one or several paths that are literal."""
    return [path for path in (paths if isinstance(paths, (list, tuple)) else [paths]) if not is_rendered_later(path)]


def plain_seconds(value: Any) -> Any:
    """Return a timedelta as seconds, which the rendered fields of Airflow's UI can show; anything else as it is."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def recognized(value: Any) -> str | None:
    """Return an id of the service, or None where it was none that a path could take."""
    return value if isinstance(value, str) and value != UNRECOGNIZED else None


def short(value: str) -> str:
    """Return an id as logs and messages show it: enough to find it, and not all of it."""
    return value if len(value) <= 12 else f"{value[:8]}…"


def refuse_pasted_templates(path: Any) -> None:
    """Refuse another system's variables before Jinja renders ``{{orgId}}`` to an error that names no cause."""
    for each in path if isinstance(path, list) else [path]:
        if isinstance(each, str):
            refuse_foreign_syntax(each)


def no_result() -> HealthExConfigurationError:
    """Return the error for an operator that has left nothing to wait for."""
    return HealthExConfigurationError(
        "update is None: the operator left no result. It was skipped, or marked success by hand; clear it, or give "
        "since=…"
    )


def _check_update(sensor: Any) -> None:
    update = sensor.update
    if hasattr(update, "output") and hasattr(update, "task_id"):
        raise HealthExConfigurationError(
            f"update must be the operator's output, and is the operator itself: give update={update.task_id}.output"
        )
    if callable(update) and not hasattr(update, "resolve"):
        raise HealthExConfigurationError("update must be a task's output, and is a function: call it, update=…()")
    if isinstance(update, str) and not (is_rendered_later(update) and _renders_natively(sensor)):
        raise HealthExConfigurationError(
            f"update must be the operator's output, and is a string ({update!r}): give update=refresh.output "
            "itself, not a template of it."
        )


def _renders_natively(sensor: Any) -> bool:
    own = getattr(sensor, "render_template_as_native_obj", None)  # Airflow 3.3
    if own is not None:
        return bool(own)
    dag = getattr(sensor, "_dag", None)
    return dag is None or bool(dag.render_template_as_native_obj)  # without a DAG yet, it may turn out so


def _refuse_moving(since: Any, *, reschedule: bool) -> None:
    """Refuse a moment that each process of a rescheduled wait would render anew, and so wait without end."""
    found = _MOVING.search(since) if reschedule and isinstance(since, str) and is_rendered_later(since) else None
    if found:
        raise HealthExConfigurationError(
            f"since is {since!r}, and {found.group()!r} is another moment at each poke of mode='reschedule': the wait "
            "would never end. Give update=refresh.output, a fixed moment such as {{ dag_run.start_date }}, or "
            "deferrable=True."
        )


def _file_name(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or any(character in value for character in "/*?"):
        raise HealthExConfigurationError(
            f"{name} must be a file's name, or its ending with a dot, without path and glob (got {value!r})"
        )
    return value
