"""
Refresh every consented patient of a project, in chunks, and work on what arrived.

1. ``patients`` lists who has consented, without those whose consent ends soon, in chunks.
2. ``refresh`` asks for each chunk in one task, several patients at once.
3. ``arrival`` waits for each chunk with one deferred task.
4. ``report`` works once over the whole; ``process`` once for each batch of patients whose data arrived.

A chunk is what one worker handles: with a Celery or Kubernetes executor they spread. How large to make them, and what
limits them: docs/cohorts.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.common.compat.sdk import Param, dag, task

from airflow_provider_healthex.operators.healthex import (
    HealthExListConsentedPatientsOperator,
    HealthExUpdateCohortOperator,
)
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor

# HealthEx takes minutes to about an hour. The sandbox takes seconds, and its demo sets these accordingly.
POKE_INTERVAL = float(os.environ.get("HEALTHEX_EXAMPLE_POKE_INTERVAL", 120))
QUIET_PERIOD = float(os.environ.get("HEALTHEX_EXAMPLE_QUIET_PERIOD", 300))
TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_TIMEOUT", 24 * 60 * 60)))

CHUNK = int(os.environ.get("HEALTHEX_EXAMPLE_CHUNK", 500))  # patients a task
BATCH = 50  # patients a downstream task


@dag(
    schedule="@monthly",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # two runs for one patient would wait for each other's delivery
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    params={
        "healthex_conn_id": Param("healthex_default", type="string", description="Airflow connection to HealthEx"),
        "aws_conn_id": Param("aws_default", type="string", description="Airflow connection to the bucket"),
        "project_id": Param("project-demo", type="string", description="HealthEx project (study)"),
        "bucket": Param("healthex-deliveries", type="string", description="Bucket HealthEx delivers to"),
        "path": Param(
            "d/{projectId}/{healthexPatientId}/",
            type="string",
            description="Path of the delivery; may use {orgId}, {projectId}, {healthexPatientId}",
        ),
    },
    tags=["healthex"],
    doc_md=__doc__,
)
def refresh_cohort() -> None:
    patients = HealthExListConsentedPatientsOperator(
        task_id="patients",
        project_id="{{ params.project_id }}",
        healthex_conn_id="{{ params.healthex_conn_id }}",
        min_days_left=14,  # who must consent again soon is better asked to do so first
        chunk_size=CHUNK,
    )

    refresh = HealthExUpdateCohortOperator.partial(
        task_id="refresh",
        project_id="{{ params.project_id }}",
        healthex_conn_id="{{ params.healthex_conn_id }}",
        max_concurrency=8,
        max_failures=0.2,
    ).expand(patient_ids=patients.output)

    arrival = HealthExCohortArrivalSensor.partial(
        task_id="arrival",
        bucket_name="{{ params.bucket }}",
        bucket_key="{{ params.path }}",
        aws_conn_id="{{ params.aws_conn_id }}",
        min_fraction=0.9,  # where nothing has changed nothing may come
        poke_interval=POKE_INTERVAL,
        quiet_period=QUIET_PERIOD,
        timeout=TIMEOUT,
        deferrable=True,
    ).expand(update=refresh.output)

    @task
    def report(arrivals: Iterable[dict[str, Any]]) -> dict[str, int]:
        """Work once over the whole cohort."""
        counts = [(chunk["arrived_count"], chunk["missing_count"]) for chunk in arrivals]
        total = {"arrived": sum(a for a, _ in counts), "missing": sum(m for _, m in counts)}
        print(f"Read from S3: {total}")
        return total

    @task
    def batches(arrivals: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Make of the chunks what can be mapped over: Airflow maps at most 1,024 tasks, so patients go in batches."""
        arrived = [{"bucket": chunk["bucket"], **one} for chunk in arrivals for one in chunk["arrived"]]
        return [arrived[start : start + BATCH] for start in range(0, len(arrived), BATCH)]

    @task
    def process(batch: list[dict[str, Any]]) -> int:
        """Work on some patients' refreshed data, which is under each one's prefix."""
        return sum(one["object_count"] for one in batch)

    report(arrival.output)
    process.expand(batch=batches(arrival.output))


refresh_cohort()
