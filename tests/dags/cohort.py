"""DAGs of the tests: a cohort is waited for in every mode. Its update is a stub, which asks HealthEx one by one."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor

BUCKET = "{{ dag_run.conf['bucket'] }}"
COMING = (patients.IN_PROGRESS, patients.PARTIAL, patients.SEVERAL_FILES)
MODES: dict[str, dict[str, Any]] = {"poke": {}, "reschedule": {"mode": "reschedule"}, "deferred": {"deferrable": True}}


@task
def refresh(patient_ids: list[str]) -> dict[str, Any]:
    """Return what the cohort operator returns."""
    updates = [HealthExHook().update_patient_data(patient_id).to_dict() for patient_id in patient_ids]
    return {
        "project_id": updates[0]["project_id"],
        "organization_id": updates[0]["organization_id"],
        "requested_at": min(update["requested_at"] for update in updates),
        "in_progress": [{key: update[key] for key in ("patient_id", "requested_at")} for update in updates],
        "patient_action_needed": [],
        "failed": [],
    }


with DAG("cohort_every_mode", schedule=None) as cohort_every_mode:
    asked = refresh(list(COMING))
    for task_id, how in MODES.items():
        HealthExCohortArrivalSensor(
            task_id=task_id,
            update=asked,
            bucket_name=BUCKET,
            bucket_key="d/{projectId}/{healthexPatientId}/",
            manifest_key=f"manifests/{task_id}.jsonl",
            poke_interval=1,
            quiet_period=3,
            timeout=60,
            **how,
        )

with DAG("cohort_one_misses", schedule=None) as cohort_one_misses:
    asked_more = refresh([*COMING, patients.NOTHING_CHANGED])
    for task_id, how in MODES.items():
        for name, arguments in {"enough": {"min_fraction": 0.75}, "fails": {}, "skips": {"soft_fail": True}}.items():
            HealthExCohortArrivalSensor(
                task_id=f"{task_id}_{name}",
                update=asked_more,
                bucket_name=BUCKET,
                bucket_key="d/{projectId}/{healthexPatientId}/",
                poke_interval=1,
                quiet_period=1,
                timeout=6,
                **how,
                **arguments,
            )
