"""DAGs of the tests: what a callback sees of a failure."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

SEEN: dict[str, Any] = {}


def remember(context: Any) -> None:
    """Keep the exception, as a callback gets it."""
    SEEN[context["ti"].task_id] = context["exception"]


with DAG("observed", schedule=None) as observed:
    HealthExUpdatePatientOperator(task_id="not_found", patient_id=patients.UNKNOWN, on_failure_callback=remember)
    HealthExUpdatePatientOperator(
        task_id="needs_action", patient_id=patients.CONSENT_EXPIRED, on_failure_callback=remember
    )
    HealthExDataArrivalSensor(
        task_id="no_bucket",
        bucket_name="no-such-bucket",
        bucket_key="d/{healthexPatientId}/",
        patient_id=patients.IN_PROGRESS,
        since="2026-01-01T00:00:00+00:00",
        on_failure_callback=remember,
    )
