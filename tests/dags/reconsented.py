"""Waiting on for those of a cohort who were asked to act, as docs/reconsent.md has it."""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

MUST_ACT = [patients.CONSENT_EXPIRED, patients.AUTHENTICATION_EXPIRED]

with DAG("reconsented", schedule=None) as reconsented:
    refresh = HealthExUpdateCohortOperator(task_id="refresh", patient_ids=[patients.IN_PROGRESS, *MUST_ACT])
    later = HealthExDataArrivalSensor.partial(
        task_id="later",
        since="{{ ti.xcom_pull(task_ids='refresh')['requested_at'] }}",
        project_id="project-demo",
        bucket_name="{{ dag_run.conf['bucket'] }}",
        bucket_key="d/{projectId}/{healthexPatientId}/",
        poke_interval=0.5,
        quiet_period=0.5,
        timeout=timedelta(seconds=30),
        soft_fail=True,
        deferrable=True,
    ).expand(patient_id=MUST_ACT)
    refresh >> later
