"""A sensor in each mode that its ``execution_timeout`` ends, long before its ``timeout``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

MODES: dict[str, dict[str, Any]] = {"poke": {}, "reschedule": {"mode": "reschedule"}, "deferred": {"deferrable": True}}
dags = {}

for name, how in MODES.items():
    with DAG(f"execution_timeout_{name}", schedule=None) as dags[name]:
        HealthExDataArrivalSensor(
            task_id="arrival",
            bucket_name="{{ dag_run.conf['bucket'] }}",
            bucket_key="d/{healthexPatientId}/",
            patient_id="patient-1",
            since="2026-01-01T00:00:00Z",
            poke_interval=0.5,
            timeout=60,
            soft_fail=True,
            execution_timeout=timedelta(seconds=4),
            **how,
        )
