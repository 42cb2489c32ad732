"""A DAG of the tests, whose OpenLineage events and metrics they read: each task that requests, or waits in S3."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator, HealthExUpdatePatientOperator
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor, HealthExDataArrivalSensor

WHERE: dict[str, Any] = {
    "bucket_name": "{{ dag_run.conf['bucket'] }}",
    "bucket_key": "d/{projectId}/{healthexPatientId}/",
    "poke_interval": 0.5,
    "quiet_period": 2,
    "timeout": 60,
}

with DAG("reported", schedule=None) as reported:
    refresh = HealthExUpdateCohortOperator(
        task_id="refresh",
        patient_ids=[patients.IN_PROGRESS, patients.PARTIAL, patients.CONSENT_EXPIRED, patients.UNKNOWN],
        max_failures=1,
    )
    HealthExCohortArrivalSensor(task_id="cohort", update=refresh.output, **WHERE)
    since = "{{ ti.xcom_pull('refresh')['requested_at'] }}"
    for task_id, deferrable in {"one": False, "deferred": True}.items():
        refresh >> HealthExDataArrivalSensor(
            task_id=task_id,
            since=since,
            patient_id=patients.IN_PROGRESS,
            project_id="project-demo",
            deferrable=deferrable,
            **WHERE,
        )
    HealthExUpdatePatientOperator(
        task_id="waiting_operator", patient_id=patients.SEVERAL_FILES, wait_for_arrival=True, **WHERE
    )
