"""
Refresh one patient's health records, and process the files when they have arrived on your SFTP server.

1. ``refresh`` requests an update of the patient's data. HealthEx answers at once and retrieves in the background.
2. ``arrival`` waits, without a worker, until the server holds a delivery since the request.
3. ``read`` is your own work on the files.

It needs ``pip install 'airflow-provider-healthex[sftp]'``, a connection of type HealthEx, one of type SFTP with the
server's ``host_key`` in Extra, and the path that you chose for HealthEx's delivery, with its variables in single
braces. All but the first are parameters of the run.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.common.compat.sdk import Param, dag, task

from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator

try:
    from airflow.providers.sftp.hooks.sftp import SFTPHook

    from airflow_provider_healthex.sensors.sftp import HealthExSftpDataArrivalSensor
except ImportError:  # without the extra sftp
    SFTPHook = None  # type: ignore[assignment, misc]

# HealthEx takes minutes to about an hour. The sandbox takes seconds, and its demo sets these accordingly.
POKE_INTERVAL = float(os.environ.get("HEALTHEX_EXAMPLE_POKE_INTERVAL", 60))
QUIET_PERIOD = float(os.environ.get("HEALTHEX_EXAMPLE_QUIET_PERIOD", 300))
TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_TIMEOUT", 6 * 60 * 60)))

if SFTPHook is not None:

    @dag(
        schedule=None,  # e.g. "@weekly"; docs/cluster.md says what unpausing then starts
        start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
        catchup=False,
        max_active_runs=1,  # two runs for one patient would wait for each other's delivery
        default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
        params={
            "healthex_conn_id": Param("healthex_default", type="string", description="Airflow connection to HealthEx"),
            "sftp_conn_id": Param("sftp_default", type="string", description="Airflow connection to the SFTP server"),
            "project_id": Param("project-demo", type="string", description="HealthEx project (study)"),
            "patient_id": Param("patient-in-progress", type="string", description="HealthEx's id of the patient"),
            "path": Param(
                "d/{projectId}/{healthexPatientId}/",
                type="string",
                description="Path of the delivery; may use {orgId}, {projectId}, {healthexPatientId}",
            ),
        },
        tags=["healthex"],
        doc_md=__doc__,
    )
    def refresh_patient_sftp() -> None:
        refresh = HealthExUpdatePatientOperator(
            task_id="refresh",
            patient_id="{{ params.patient_id }}",
            project_id="{{ params.project_id }}",
            healthex_conn_id="{{ params.healthex_conn_id }}",
        )

        arrival = HealthExSftpDataArrivalSensor(
            task_id="arrival",
            update=refresh.output,  # the patient, the project and requested_at
            path="{{ params.path }}",  # relative to the account's home; from the server's root with a leading /
            sftp_conn_id="{{ params.sftp_conn_id }}",
            poke_interval=POKE_INTERVAL,
            quiet_period=QUIET_PERIOD,
            timeout=TIMEOUT,
            deferrable=True,
        )

        @task
        def read(delivery: dict[str, Any], params: Any = None) -> dict[str, int]:
            """Count the FHIR resources. Return counts, never patients' data: XCom is stored and shown."""
            resources: Counter[str] = Counter()
            with SFTPHook(ssh_conn_id=params["sftp_conn_id"]).get_managed_conn() as sftp:
                for path in delivery["keys"]:
                    with sftp.open(path) as file:
                        bundle = json.load(file)
                    resources.update(entry["resource"]["resourceType"] for entry in bundle.get("entry", []))
            print(f"Read from SFTP: {dict(resources)}")
            return dict(resources)

        read(arrival.output)

    refresh_patient_sftp()
