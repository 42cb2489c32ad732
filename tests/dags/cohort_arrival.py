"""DAGs of the tests: a cohort is asked for in one task, and waited for in every mode."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor

BUCKET = "{{ dag_run.conf['bucket'] }}"
COMING = (patients.IN_PROGRESS, patients.PARTIAL, patients.SEVERAL_FILES)
MODES: dict[str, dict[str, Any]] = {"poke": {}, "reschedule": {"mode": "reschedule"}, "deferred": {"deferrable": True}}


with DAG("cohort_every_mode", schedule=None) as cohort_every_mode:
    asked = HealthExUpdateCohortOperator(task_id="refresh", patient_ids=list(COMING)).output
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
    asked_more = HealthExUpdateCohortOperator(task_id="refresh", patient_ids=[*COMING, patients.NOTHING_CHANGED]).output
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
