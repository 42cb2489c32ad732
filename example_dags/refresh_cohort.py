"""
Refresh the consented patients of a project whose data is old, in chunks, and process what arrived.

1. ``patients`` lists the patients who have consented and whose newest delivery is older than ``max_age_days``, in
   chunks. So a second run doesn't bill what was just delivered. Those whose consent ends soon are left out.
2. ``refresh_chunk`` runs for each chunk: ``refresh`` requests its updates, and ``arrival`` waits, without a worker, for
   those in progress. A chunk that fails leaves the other chunks alone.
3. ``batches`` collects the patients whose data arrived, and ``process`` works on each batch of them.
4. ``report`` counts. It fails the run if too little has arrived.

An accepted update is billed, so its data is processed also when ``refresh`` or another chunk failed; the run still
fails. One worker handles a chunk: with a Celery or Kubernetes executor the chunks spread over workers. Chunk sizes and
limits: docs/cohorts.md.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, Param, dag, task, task_group

from airflow_provider_healthex.operators.healthex import (
    HealthExListStalePatientsOperator,
    HealthExUpdateCohortOperator,
)
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor

# HealthEx takes minutes to about an hour. The sandbox takes seconds, and the tests set these accordingly.
POKE_INTERVAL = float(os.environ.get("HEALTHEX_EXAMPLE_POKE_INTERVAL", 120))
QUIET_PERIOD = float(os.environ.get("HEALTHEX_EXAMPLE_QUIET_PERIOD", 300))
TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_TIMEOUT", 24 * 60 * 60)))

CHUNK = int(os.environ.get("HEALTHEX_EXAMPLE_CHUNK", 500))  # patients a chunk
BATCH = 50  # patients a downstream task
ENOUGH = 0.9  # fraction of those in progress: without changes HealthEx may deliver nothing


def listed(results: Any) -> list[dict[str, Any]]:
    """
    Return the results of a mapped task group's tasks as a list, without those that returned nothing.

    Airflow 3.3 passes a single result without a list, and None if there is no result.
    """
    return [results] if isinstance(results, dict) else [each for each in results or () if each]


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

    @task_group
    def refresh_chunk(patient_ids: list[str]) -> Any:
        refresh = HealthExUpdateCohortOperator(
            task_id="refresh",
            patient_ids=patient_ids,
            project_id="{{ params.project_id }}",
            healthex_conn_id="{{ params.healthex_conn_id }}",
            max_failures=0.2,
            # pool="healthex",  # limits the requests of all workers together: docs/cluster.md
        )
        arrival = HealthExCohortArrivalSensor(
            task_id="arrival",
            update=refresh.output,
            # Also after a refresh that failed: its result has accepted updates, which are billed.
            trigger_rule="none_skipped",
            bucket_name="{{ params.bucket }}",
            bucket_key="{{ params.path }}",
            aws_conn_id="{{ params.aws_conn_id }}",
            min_fraction=0,  # at the deadline, return what has arrived: report decides whether that is enough
            poke_interval=POKE_INTERVAL,
            quiet_period=QUIET_PERIOD,
            timeout=TIMEOUT,
            deferrable=True,
        )

        # A run's state is that of its last tasks, and these run also after a failure. This one fails the run.
        @task(trigger_rule="one_failed", retries=0)
        def watcher() -> None:
            raise AirflowFailException("refresh or arrival of this chunk failed: its log says why")

        [refresh, arrival] >> watcher()
        return arrival.output

    @task(trigger_rule="all_done")
    def batches(arrivals: Any) -> list[list[dict[str, Any]]]:
        """List the patients whose data arrived, in batches: Airflow maps over at most 1,024 items."""
        arrived = [{"bucket": chunk["bucket"], **one} for chunk in listed(arrivals) for one in chunk["arrived"]]
        return [arrived[start : start + BATCH] for start in range(0, len(arrived), BATCH)]

    @task
    def process(batch: list[dict[str, Any]]) -> int:
        """Work on the refreshed data of some patients, which is under each one's prefix."""
        return sum(one["object_count"] for one in batch)

    @task(trigger_rule="all_done")
    def report(arrivals: Any) -> dict[str, int]:
        """Count over all chunks."""
        counts = [(chunk["arrived_count"], chunk["missing_count"]) for chunk in listed(arrivals)]
        total = {"arrived": sum(a for a, _ in counts), "missing": sum(m for _, m in counts)}
        print(f"Read from S3: {total}")
        if total["arrived"] < ENOUGH * sum(total.values()):
            raise AirflowFailException(f"Too little has arrived: {total}")
        return total

    arrivals = refresh_chunk.expand(patient_ids=patients.output)
    process.expand(batch=batches(arrivals))
    report(arrivals)


refresh_cohort()
