"""
Refresh a list of patients in one task, and work on what arrived on your SFTP server.

The short twin of ``refresh_cohort`` for SFTP: one chunk. For thousands of patients map a task group over chunks, as
that example does.

Set it up: ``pip install 'airflow-provider-healthex[sftp]'``, a connection of type HealthEx, one of type SFTP with the
server's ``host_key`` in Extra, and the path that you chose for HealthEx's delivery.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.common.compat.sdk import Param, dag, task

from airflow_provider_healthex.operators.healthex import (
    HealthExListConsentedPatientsOperator,
    HealthExUpdateCohortOperator,
)

try:
    from airflow_provider_healthex.sensors.sftp import HealthExSftpCohortArrivalSensor
except ImportError:  # without the extra sftp
    HealthExSftpCohortArrivalSensor = None  # type: ignore[assignment, misc]

# HealthEx takes minutes to about an hour. The sandbox takes seconds, and the tests set these accordingly.
POKE_INTERVAL = float(os.environ.get("HEALTHEX_EXAMPLE_POKE_INTERVAL", 120))
QUIET_PERIOD = float(os.environ.get("HEALTHEX_EXAMPLE_QUIET_PERIOD", 300))
TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_TIMEOUT", 24 * 60 * 60)))

if HealthExSftpCohortArrivalSensor is not None:

    @dag(
        schedule=None,  # e.g. "@monthly"; docs/cluster.md says what unpausing then starts
        start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
        catchup=False,
        max_active_runs=1,  # two runs for one patient would wait for each other's delivery
        default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
        params={
            "healthex_conn_id": Param("healthex_default", type="string", description="Airflow connection to HealthEx"),
            "sftp_conn_id": Param("sftp_default", type="string", description="Airflow connection to the SFTP server"),
            "project_id": Param("project-demo", type="string", description="HealthEx project (study)"),
            "path": Param(
                "d/{projectId}/{healthexPatientId}/",
                type="string",
                description="Path of the delivery; may use {orgId}, {projectId}, {healthexPatientId}",
            ),
        },
        tags=["healthex"],
        doc_md=__doc__,
    )
    def refresh_cohort_sftp() -> None:
        patients = HealthExListConsentedPatientsOperator(
            task_id="patients",
            project_id="{{ params.project_id }}",
            healthex_conn_id="{{ params.healthex_conn_id }}",
        )
        refresh = HealthExUpdateCohortOperator(
            task_id="refresh",
            patient_ids=patients.output,
            project_id="{{ params.project_id }}",
            healthex_conn_id="{{ params.healthex_conn_id }}",
            max_failures=0.2,
        )
        arrival = HealthExSftpCohortArrivalSensor(
            task_id="arrival",
            update=refresh.output,
            path="{{ params.path }}",
            sftp_conn_id="{{ params.sftp_conn_id }}",
            min_fraction=0.5,  # where nothing has changed nothing may come
            poke_interval=POKE_INTERVAL,
            quiet_period=QUIET_PERIOD,
            timeout=TIMEOUT,
            deferrable=True,
        )

        @task
        def report(delivery: dict[str, Any]) -> dict[str, int]:
            """Work on what arrived: the files of each patient are below ``prefix``."""
            counts = {one["patient_id"]: one["object_count"] for one in delivery["arrived"]}
            print(f"{len(counts)} patients arrived, {delivery['missing_count']} are missing")
            return counts

        report(arrival.output)

    refresh_cohort_sftp()
