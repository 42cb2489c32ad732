"""DAGs of the tests: the task group for one list of patients, and for chunks."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.task_groups import RefreshOptions, healthex_refresh

WHERE = RefreshOptions(
    bucket_name="{{ dag_run.conf['bucket'] }}",
    bucket_key="d/{projectId}/{healthexPatientId}/",
    poke_interval=0.5,
    quiet_period=0.5,
    timeout=30,
    deferrable=True,
)
STRICT: RefreshOptions = {**WHERE, "group_id": "refreshed", "max_failures": 0}


@task
def count(results: Any) -> list[int]:
    """Count the patients of each chunk; with Airflow's default trigger rule."""
    return [result["arrived_count"] for result in results]


with DAG("one_list", schedule=None) as one_list:
    count(healthex_refresh(patient_ids=[patients.IN_PROGRESS, patients.PARTIAL], **WHERE))

with DAG("one_chunk", schedule=None) as one_chunk:
    count(healthex_refresh.partial(**WHERE).expand(patient_ids=[[patients.IN_PROGRESS]]))

with DAG("chunks", schedule=None) as chunks:
    count(
        healthex_refresh.partial(**STRICT).expand(
            patient_ids=[[patients.IN_PROGRESS], [patients.UNKNOWN], [patients.PARTIAL, patients.PROJECT_PAUSED]]
        )
    )
