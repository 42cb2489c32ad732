"""A user's DAG that a type checker must accept, with one key of a task's output."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import (
    HealthExListConsentedPatientsOperator,
    HealthExUpdateCohortOperator,
    HealthExUpdatePatientOperator,
)
from airflow_provider_healthex.sandbox import patients

with DAG("typed", schedule=None) as typed:
    refresh = HealthExUpdatePatientOperator(
        task_id="refresh",
        patient_id=patients.IN_PROGRESS,
        skip_interactive="{{ dag_run.conf['skip_interactive'] }}",
        multiple_outputs=True,
    )
    patient_id = refresh.output["patient_id"]  # type: ignore[index]  # Airflow's own types lack the index
    again = HealthExUpdatePatientOperator(task_id="again", patient_id=patient_id)
    cohort = HealthExUpdateCohortOperator(
        task_id="cohort", patient_ids=[patients.PARTIAL, {"patient_id": patients.SEVERAL_FILES, "external_id": "e-1"}]
    )

with DAG("typed_outputs", schedule=None):
    listed = HealthExListConsentedPatientsOperator(task_id="listed", project_id="{{ params.project_id }}")
    HealthExUpdateCohortOperator(task_id="refresh", patient_ids=listed.output, project_id=listed.output)
    HealthExUpdateCohortOperator(task_id="templated", patient_ids="{{ params.patient_ids }}", skip_interactive=True)
