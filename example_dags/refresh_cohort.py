"""
Refresh the consented patients of a project whose data is old, in chunks, and process what arrived.

1. ``patients`` lists the patients who have consented and whose newest delivery is older than ``max_age_days``, in
   chunks. So a second run doesn't bill what was just delivered. Those whose consent ends soon are left out.
2. ``healthex_refresh`` runs for each chunk: it requests the updates, and waits, without a worker, for those in
   progress. A chunk that fails leaves the other chunks alone, and fails the run.
3. ``batches`` collects the patients whose data arrived, and ``process`` works on each batch of them.
4. ``report`` counts. It fails the run if too little has arrived.

An accepted update is billed, so its data is processed also when its chunk failed. One worker handles a chunk: with a
Celery or Kubernetes executor the chunks spread over workers. Chunk sizes and limits: docs/cohorts.md.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, Param, dag, task

from airflow_provider_healthex.operators.healthex import HealthExListStalePatientsOperator
from airflow_provider_healthex.task_groups import healthex_refresh

# HealthEx takes minutes to about an hour. The sandbox takes seconds, and the tests set these accordingly.
POKE_INTERVAL = float(os.environ.get("HEALTHEX_EXAMPLE_POKE_INTERVAL", 120))
QUIET_PERIOD = float(os.environ.get("HEALTHEX_EXAMPLE_QUIET_PERIOD", 300))
TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_TIMEOUT", 24 * 60 * 60)))

CHUNK = int(os.environ.get("HEALTHEX_EXAMPLE_CHUNK", 500))  # patients a chunk
BATCH = 50  # patients a downstream task
ENOUGH = 0.9  # fraction of those in progress: without changes HealthEx may deliver nothing


@dag(
    schedule=None,  # e.g. "@monthly"; docs/cluster.md says what unpausing then starts
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # two runs for one patient would wait for each other's delivery
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    params={
        "healthex_conn_id": Param("healthex_default", type="string", description="Airflow connection to HealthEx"),
        "aws_conn_id": Param("aws_default", type="string", description="Airflow connection to the bucket"),
        "project_id": Param("project-demo", type="string", description="HealthEx project (study)"),
        "bucket": Param("healthex-deliveries", type="string", description="Bucket HealthEx delivers to"),
        "max_age_days": Param(
            7, type="number", minimum=0, description="Request patients whose newest delivery is older; 0: all"
        ),
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
    patients = HealthExListStalePatientsOperator(
        task_id="patients",
        project_id="{{ params.project_id }}",
        healthex_conn_id="{{ params.healthex_conn_id }}",
        min_days_left=14,  # a patient whose consent ends sooner has to renew it first
        chunk_size=CHUNK,
        bucket_name="{{ params.bucket }}",
        bucket_key="{{ params.path }}",
        aws_conn_id="{{ params.aws_conn_id }}",
        max_age="{{ params.max_age_days * 24 * 60 * 60 }}",
    )

    arrivals = healthex_refresh.partial(
        project_id="{{ params.project_id }}",
        healthex_conn_id="{{ params.healthex_conn_id }}",
        max_failures=0.2,
        # pool="healthex",  # limits the requests of all workers together: docs/cluster.md
        bucket_name="{{ params.bucket }}",
        bucket_key="{{ params.path }}",
        aws_conn_id="{{ params.aws_conn_id }}",
        min_fraction=0,  # at the deadline, return what has arrived: report decides whether that is enough
        poke_interval=POKE_INTERVAL,
        quiet_period=QUIET_PERIOD,
        timeout=TIMEOUT,
        deferrable=True,
    ).expand(patient_ids=patients.output)

    @task
    def batches(arrivals: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """List the patients whose data arrived, in batches: Airflow maps over at most 1,024 items."""
        arrived = [{"bucket": chunk["bucket"], **one} for chunk in arrivals for one in chunk["arrived"]]
        return [arrived[start : start + BATCH] for start in range(0, len(arrived), BATCH)]

    @task
    def process(batch: list[dict[str, Any]]) -> int:
        """Work on the refreshed data of some patients, which is under each one's prefix."""
        return sum(one["object_count"] for one in batch)

    @task
    def report(arrivals: list[dict[str, Any]]) -> dict[str, int]:
        """Count over all chunks."""
        counts = [(chunk["arrived_count"], chunk["missing_count"]) for chunk in arrivals]
        total = {"arrived": sum(a for a, _ in counts), "missing": sum(m for _, m in counts)}
        print(f"Read from S3: {total}")
        if total["arrived"] < ENOUGH * sum(total.values()):
            raise AirflowFailException(f"Too little has arrived: {total}")
        return total

    process.expand(batch=batches(arrivals))
    report(arrivals)


refresh_cohort()
