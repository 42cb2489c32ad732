"""
Refresh a few patients' health records, each independently of the others.

``refresh_one`` runs for each patient: ``refresh`` requests the update and waits for the delivery, without a worker, and
``read`` is your own work on the files. A failure ends the tasks of that patient and no others. For a patient who needs
to act first they are skipped. ``report`` runs when all have ended, and ``watcher`` fails the run if a patient's task
failed.

Each patient takes a process, a token and a trigger. For more than about 20 patients use ``refresh_cohort``.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, Param, dag, task, task_group

from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator

# HealthEx takes minutes to about an hour. The sandbox takes seconds, and the tests set these accordingly.
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
        "patient_ids": Param(
            ["patient-in-progress", "patient-consent-expired", "patient-partial"],
            type="array",
            description="HealthEx's ids of the patients",
        ),
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
def refresh_patients() -> None:
    @task
    def patients(params: Any = None) -> list[str]:
        """List the patients. Replace this by your own source of ids."""
        return list(params["patient_ids"])

    @task
    def read(delivery: dict[str, Any]) -> dict[str, Any]:
        """Work on one patient's files. Return counts, never patients' data: XCom is stored and shown."""
        return {"patient_id": delivery["patient_id"], "files": delivery["object_count"]}

    @task_group
    def refresh_one(patient_id: str) -> Any:
        refresh = HealthExUpdatePatientOperator(
            task_id="refresh",
            patient_id=patient_id,
            project_id="{{ params.project_id }}",
            healthex_conn_id="{{ params.healthex_conn_id }}",
            on_patient_action="skip",  # skips the tasks of this patient alone
            wait_for_arrival=True,  # a retry waits on, and requests nothing (Airflow 3.3); below, it is not retried
            bucket_name="{{ params.bucket }}",
            bucket_key="{{ params.path }}",
            aws_conn_id="{{ params.aws_conn_id }}",
            poke_interval=POKE_INTERVAL,
            quiet_period=QUIET_PERIOD,
            timeout=TIMEOUT,
            deferrable=True,
        )
        result = read(refresh.output)

        # The last tasks of a run decide its state, and report goes on after a failure. So this one fails the run.
        @task(trigger_rule="one_failed", retries=0)
        def watcher() -> None:
            raise AirflowFailException("A task of this patient failed: its log says why")

        [refresh, result] >> watcher()
        return result

    @task(trigger_rule="all_done")  # the default rule would skip it as soon as one patient is skipped
    def report(results: Any) -> dict[str, int]:
        """Work once over all patients whose data was read."""
        # Airflow 3.3 hands over a single result as it is, and not in a list; 3.0 a mark where there is none.
        found = [results] if isinstance(results, dict) else results or ()
        files = {each["patient_id"]: each["files"] for each in found if isinstance(each, dict)}
        print(f"Read {sum(files.values())} files of {len(files)} patients")
        return files

    report(refresh_one.expand(patient_id=patients()))


refresh_patients()
