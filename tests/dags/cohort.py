"""DAGs that ask for cohorts: mapped over chunks, and failing with a result."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import (
    HealthExListConsentedPatientsOperator,
    HealthExUpdateCohortOperator,
)
from airflow_provider_healthex.sandbox import patients

with DAG("cohort_in_chunks", schedule=None) as in_chunks:
    listed = HealthExListConsentedPatientsOperator(task_id="listed", min_days_left=30, chunk_size=3)
    # Some patients of the sandbox must act although they have consented, and a small chunk may have no others.
    HealthExUpdateCohortOperator.partial(task_id="refresh", skip_interactive=True).expand(patient_ids=listed.output)

with DAG("cohort_retried", schedule=None) as retried:
    HealthExUpdateCohortOperator(
        task_id="refresh",
        patient_ids=[patients.IN_PROGRESS, patients.SEVERAL_FILES, {"patient_id": patients.PARTIAL}],
        max_failures=0,
        retries=1,
        retry_delay=timedelta(0),
    )


class RetriesEditedMeanwhile(HealthExUpdateCohortOperator):
    """On its second try a worker parses a DAG file with more `retries`, as after a deploy."""

    def execute(self, context: Any) -> dict[str, Any]:
        if context["ti"].try_number == 2:
            context["ti"].task.retries += 3
        return super().execute(context)


with DAG("cohort_edited", schedule=None) as edited:
    RetriesEditedMeanwhile(
        task_id="refresh",
        patient_ids=[patients.IN_PROGRESS, patients.PARTIAL],
        max_failures=0,
        retries=1,
        retry_delay=timedelta(0),
    )

with DAG("cohort_from_a_template", schedule=None, render_template_as_native_obj=True) as from_a_template:
    HealthExUpdateCohortOperator(task_id="refresh", patient_ids="{{ dag_run.conf['patient_ids'] }}")
