"""
Refresh one patient's health records, and process the files when they have arrived in S3.

1. ``refresh`` requests an update of the patient's data. HealthEx answers at once and retrieves in the background.
2. ``arrival`` waits, without a worker, until S3 holds a delivery since the request.
3. ``read`` is your own work on the files.

It needs a connection of type HealthEx, one of type Amazon Web Services, and the path that you chose for HealthEx's
delivery to your bucket, with its variables in single braces. All of them are parameters of the run.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.common.compat.sdk import Param, dag, task

from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

# HealthEx takes minutes to about an hour. The sandbox takes seconds, and its demo sets these accordingly.
POKE_INTERVAL = float(os.environ.get("HEALTHEX_EXAMPLE_POKE_INTERVAL", 60))
QUIET_PERIOD = float(os.environ.get("HEALTHEX_EXAMPLE_QUIET_PERIOD", 300))
TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_TIMEOUT", 6 * 60 * 60)))


@dag(
    schedule=None,  # e.g. "@weekly"; docs/cluster.md says what unpausing then starts
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # two runs for one patient would wait for each other's delivery
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    params={
        "healthex_conn_id": Param("healthex_default", type="string", description="Airflow connection to HealthEx"),
        "aws_conn_id": Param("aws_default", type="string", description="Airflow connection to the bucket"),
        "project_id": Param("project-demo", type="string", description="HealthEx project (study)"),
        "patient_id": Param("patient-in-progress", type="string", description="HealthEx's id of the patient"),
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
def refresh_patient() -> None:
    refresh = HealthExUpdatePatientOperator(
        task_id="refresh",
        patient_id="{{ params.patient_id }}",
        project_id="{{ params.project_id }}",
        healthex_conn_id="{{ params.healthex_conn_id }}",
    )

    arrival = HealthExDataArrivalSensor(
        task_id="arrival",
        update=refresh.output,  # the patient, the project, and since when data counts
        bucket_name="{{ params.bucket }}",
        bucket_key="{{ params.path }}",
        aws_conn_id="{{ params.aws_conn_id }}",
        poke_interval=POKE_INTERVAL,
        quiet_period=QUIET_PERIOD,
        timeout=TIMEOUT,
        deferrable=True,
    )

    @task
    def read(delivery: dict[str, Any], params: Any = None) -> dict[str, int]:
        """Count the FHIR resources that came. Return counts, never patients' data: XCom is stored and shown."""
        s3 = S3Hook(aws_conn_id=params["aws_conn_id"])
        resources: Counter[str] = Counter()
        for key in delivery["keys"]:
            bundle = json.loads(s3.read_key(key, bucket_name=delivery["bucket"]))
            resources.update(entry["resource"]["resourceType"] for entry in bundle.get("entry", []))
        print(f"Read from S3: {dict(resources)}")
        return dict(resources)

    read(arrival.output)


refresh_patient()
