"""A refresh of ten thousand patients: who they are comes from a task, as in practice, and not from this file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor


@task
def patients() -> list[str]:
    """Read who they are."""
    ids: list[str] = json.loads(Path(os.environ["BENCH_PATIENTS_FILE"]).read_text())
    return ids


with DAG("bench_scaling", schedule=None):
    refresh = HealthExUpdateCohortOperator(task_id="refresh", patient_ids=patients(), max_concurrency=16)  # type: ignore[arg-type]
    HealthExCohortArrivalSensor(
        task_id="arrival",
        update=refresh.output,
        bucket_name=os.environ.get("BENCH_BUCKET", "healthex-deliveries"),
        bucket_key="d/{projectId}/{healthexPatientId}/",
        quiet_period=0,
        deferrable=True,
        poke_interval=5,
        timeout=3600,
    )
