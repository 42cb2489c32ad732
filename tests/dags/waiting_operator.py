"""DAGs of the tests: one task requests and waits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
from airflow_provider_healthex.sandbox import patients

WAIT: dict[str, Any] = {
    "wait_for_arrival": True,
    "bucket_name": "{{ dag_run.conf['bucket'] }}",
    "bucket_key": "d/{projectId}/{healthexPatientId}/",
    "poke_interval": 0.5,
}

with DAG("one_task_waits", schedule=None) as one_task_waits:
    for patient_id, how in {patients.IN_PROGRESS: {}, patients.PARTIAL: {"deferrable": True}}.items():
        HealthExUpdatePatientOperator(
            task_id=patient_id, patient_id=patient_id, quiet_period=1, timeout=60, **how, **WAIT
        )

with DAG("one_task_waits_for_each", schedule=None) as one_task_waits_for_each:
    HealthExUpdatePatientOperator.partial(
        task_id="refresh", quiet_period=1, timeout=60, deferrable=True, on_patient_action="skip", **WAIT
    ).expand(patient_id=[patients.IN_PROGRESS, patients.CONSENT_EXPIRED, patients.UNKNOWN])

# The first try ends before the delivery has settled, and the second one goes on waiting for it.
with DAG("one_task_waits_again", schedule=None) as one_task_waits_again:
    HealthExUpdatePatientOperator(
        task_id="refresh",
        patient_id=patients.IN_PROGRESS,
        quiet_period=6,
        timeout=60,
        execution_timeout=timedelta(seconds=4),
        retries=3,
        retry_delay=timedelta(0),
        **WAIT,
    )
