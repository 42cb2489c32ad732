"""The wait for one patient or a cohort, put together: its names in messages, and the sensor's result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from os.path import commonprefix
from typing import Any

from airflow.providers.common.compat.sdk import AirflowSkipException, conf

from airflow_provider_healthex.client.patient_action import patient_action_needed
from airflow_provider_healthex.delivery import Arrival, ArrivalWait, Expectation, StoredObject
from airflow_provider_healthex.delivery.template import names_patient
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.moments import to_text
from airflow_provider_healthex.sensors.awaited import Awaited, Storage
from airflow_provider_healthex.sensors.checks import short
from airflow_provider_healthex.sensors.request import (
    arrival_rule,
    check_targets,
    cohort_patients,
    enough,
    least,
    manifest_key,
    patient_request,
)

ON_PATIENT_ACTION = ("fail", "skip", "wait")
MAX_KEYS = 1_000
#: The most patients that one task takes; and, deferred, with MySQL, whose column for a trigger holds 64 KB.
MAX_PATIENTS, MAX_PATIENTS_MYSQL = 10_000, 500

#: Keys of the results that asset events get: neither keys nor ids.
PATIENT_EVENT_KEYS = ("object_count", "total_bytes", "since", "first_modified", "last_modified")
COHORT_EVENT_KEYS = ("arrived_count", "missing_count")

_FROM_UPDATE = "each patient's comes from update=…"
#: Arguments of a sensor for one patient that a cohort's doesn't have, and why.
COHORT_REFUSED = {
    "since": _FROM_UPDATE,
    "patient_id": _FROM_UPDATE,
    "external_id": _FROM_UPDATE,
    "on_patient_action": "patients who need to act have no request in progress and aren't waited for; the operator's "
    "output lists them",
}
_MISSING_LOGGED = 20


def await_patient(
    sensor: Any, storage: Storage, paths: Sequence[str], manifest: tuple[str, Any], since: str | None
) -> Awaited:
    """
    Return what a sensor for one patient awaits.

    :param paths: in the storage.
    :param manifest: the argument for the manifest, its name and its value.
    :raises HealthExPatientActionNeeded: with ``on_patient_action="fail"``, where the patient needs to act.
    """
    request, rule = patient_request(sensor, since), arrival_rule(sensor)
    if request.needs_action and sensor.on_patient_action != "wait":
        needed = patient_action_needed(request.patient.patient_id or "?", request.reason)
        if sensor.on_patient_action == "skip":
            raise AirflowSkipException(str(needed)) from needed
        raise needed
    expectation = Expectation(tuple(paths), request.values, (request.patient,), rule, sensor.wildcard_match)
    wait = ArrivalWait(expectation, storage.listing)
    targets, patient = wait.targets[0], request.patient
    check_targets(rule, targets)
    for target in targets:
        ids = [value for value in (patient.patient_id, patient.external_id) if value]
        if not names_patient(target.template) and not any(value in target.template for value in ids):
            sensor.log.warning(
                "The path %s does not name the patient: a delivery for any patient will be taken for this one's. "
                "Put {healthexPatientId} or {externalId} into it.",
                target.template,
            )
    name = f"patient {short(patient.patient_id)}" if patient.patient_id else "a delivery"
    prefix = _common_prefix([target.prefix for target in targets])

    def result(
        arrived: Mapping[int, Arrival], objects: Sequence[StoredObject], manifest_uri: str | None
    ) -> dict[str, Any]:
        arrival = arrived[0]
        first, last = to_text(arrival.first_modified), to_text(arrival.last_modified)
        count = f"{arrival.object_count:,} object{'' if arrival.object_count == 1 else 's'}"
        size = f"{arrival.total_bytes:,}"
        sensor.log.info("Arrived for %s: %s, %s bytes, modified %s to %s", name, count, size, first, last)
        sensor.log.debug("Keys: %s", [row.key for row in objects[:MAX_KEYS]])
        return {
            "bucket": storage.bucket,
            "prefix": prefix,
            "uri": storage.uri(prefix),
            "patient_id": patient.patient_id,
            "project_id": request.values["projectId"],
            "since": to_text(patient.requested_at),
            "keys": [row.key for row in objects[:MAX_KEYS]],
            "keys_truncated": len(objects) > MAX_KEYS,
            "object_count": arrival.object_count,
            "total_bytes": arrival.total_bytes,
            "first_modified": first,
            "last_modified": last,
            "manifest": manifest_uri,
        }

    return Awaited(
        storage=storage,
        wait=wait,
        name=name,
        place=f"{storage.address(_shown_path(request.variables, paths))} ({name})",
        result=result,
        manifest=manifest_key(*manifest, request.variables, targets),
        needs_objects=True,
        since=to_text(patient.requested_at),
    )


def await_cohort(sensor: Any, storage: Storage, path: str, manifest: tuple[str, Any]) -> Awaited:
    """Return what a sensor for a cohort awaits; the parameters are those of `await_patient`."""
    values, patients = cohort_patients(sensor, path)
    _refuse_too_many(sensor, len(patients))
    rule, (min_fraction, _) = arrival_rule(sensor), enough(sensor)
    wait = ArrivalWait(Expectation((path,), values, patients, rule, sensor.wildcard_match), storage.listing)
    targets = [own[0] for own in wait.targets]
    check_targets(rule, targets[:1])

    def result(arrived: Mapping[int, Arrival], _: Sequence[StoredObject], manifest_uri: str | None) -> dict[str, Any]:
        missing = [patient.patient_id for index, patient in enumerate(patients) if index not in arrived]
        note = f"; {len(missing):,} missing, and min_fraction={sensor.min_fraction} is enough" if missing else ""
        sensor.log.info("%s of %s patients arrived%s", f"{len(arrived):,}", f"{len(patients):,}", note)
        return {
            "bucket": storage.bucket,
            "arrived": [
                {
                    "patient_id": patients[index].patient_id,
                    "prefix": targets[index].prefix,
                    "object_count": arrived[index].object_count,
                    "last_modified": to_text(arrived[index].last_modified),
                }
                for index in sorted(arrived)
            ],
            "missing": missing,
            "arrived_count": len(arrived),
            "missing_count": len(missing),
            "manifest": manifest_uri,
        }

    return Awaited(
        storage=storage,
        wait=wait,
        name=f"cohort of {len(patients):,} patient{'' if len(patients) == 1 else 's'}",
        place=storage.address(path),
        result=result,
        manifest=manifest_key(*manifest, values, targets, shared=True),
        least=least(min_fraction, len(patients)),
    )


def cohort_verdict(sensor: Any, awaited: Awaited, arrived: Collection[int]) -> str:
    """Return the verdict of a cohort's timeout, and log who is missing."""
    patients = awaited.wait.expectation.patients
    missing = [str(patient.patient_id) for index, patient in enumerate(patients) if index not in arrived]
    sensor.log.error(
        "%s of %s patients are missing, and min_fraction is %s: %s%s",
        f"{len(missing):,}",
        f"{len(patients):,}",
        sensor.min_fraction,
        ", ".join(missing[:_MISSING_LOGGED]),
        ", …" if len(missing) > _MISSING_LOGGED else "",
    )
    return (
        f"Only {len(arrived):,} of {len(patients):,} patients arrived within {sensor.timeout:g} s, and "
        f"min_fraction={sensor.min_fraction} needs {awaited.least:,},"
    )


def _shown_path(variables: Mapping[str, str | None], paths: Sequence[str]) -> str:
    """Return a path as messages show it: without an external id, and with other ids shortened."""
    first, more = paths[0], f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    external_id = variables["externalId"]
    if external_id:
        first = first.replace(external_id, "{externalId}")
    for name in ("healthexPatientId", "projectId"):
        value = variables[name]
        first = first.replace(value, short(value)) if value else first
    return first + more


def _common_prefix(prefixes: Sequence[str]) -> str:
    if len(prefixes) == 1:
        return prefixes[0]
    return "".join(commonprefix(prefixes).rpartition("/")[:2])  # noqa: RUF071 - cut at a "/" again


_CHUNK = "Wait for chunks of it: HealthExUpdateCohortOperator and this sensor with .expand() over lists of patients"


def _refuse_too_many(sensor: Any, count: int) -> None:
    if count > MAX_PATIENTS:
        raise HealthExConfigurationError(
            f"The cohort has {count:,} patients in progress, more than the {MAX_PATIENTS:,} of one task. {_CHUNK}."
        )
    if count <= MAX_PATIENTS_MYSQL or not sensor.deferrable:
        return
    database = _database()
    limit = f"{MAX_PATIENTS_MYSQL} that a trigger's row holds with a MySQL metadata database"
    if database == "mysql":
        raise HealthExConfigurationError(
            f"The cohort has {count:,} patients in progress, more than the {limit}. {_CHUNK}, or wait with "
            "mode='reschedule'."
        )
    if database is None:
        sensor.log.warning("%s patients are more than the %s; if yours is one, use chunks.", f"{count:,}", limit)


def _database() -> str | None:
    """Return the metadata database's kind, or None where this process can't know: Airflow 3 hides it from workers."""
    try:
        url = conf.get("database", "sql_alchemy_conn", fallback="") or ""
    except Exception:  # the command or secret it would come from isn't the worker's to read
        return None
    kind = url.partition(":")[0].partition("+")[0].lower()
    return {"mariadb": "mysql", "mysql": "mysql", "postgresql": "postgresql", "sqlite": "sqlite"}.get(kind)
