"""A delivery to an SFTP server, waited for in each mode."""

from __future__ import annotations

from datetime import datetime, timezone

from airflow.providers.common.compat.sdk import DAG

try:
    from airflow_provider_healthex.sensors.sftp import HealthExSftpDataArrivalSensor
except ModuleNotFoundError:  # the extra sftp isn't installed
    HealthExSftpDataArrivalSensor = None

UPDATES = [
    {
        "project_id": "project-1",
        "patient_id": f"patient-{number}",
        "message": "IN_PROGRESS_NO_ACTION_NEEDED",
        "requested_at": datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
    }
    for number in (1, 2)
]

dags = {}
if HealthExSftpDataArrivalSensor is not None:
    for mode, how in {"poke": {}, "reschedule": {"mode": "reschedule"}, "deferred": {"deferrable": True}}.items():
        with DAG(f"sftp_{mode}", schedule=None) as dags[mode]:
            HealthExSftpDataArrivalSensor(
                task_id="arrival",
                path="d/{projectId}/{healthexPatientId}/",
                project_id="project-1",
                patient_id="patient-1",
                since="{{ dag_run.conf['since'] }}",
                quiet_period=1,
                poke_interval=1,
                clock_skew=0,
                timeout=60,
                **how,
            )
    with DAG("sftp_mapped", schedule=None) as dags["mapped"]:
        HealthExSftpDataArrivalSensor.partial(
            task_id="arrival",
            path="{{ dag_run.conf['path'] }}",
            manifest_path="manifests/{healthexPatientId}-{{ run_id | length }}.jsonl",
            sftp_conn_id="{{ dag_run.conf['sftp_conn_id'] }}",
            quiet_period=0,
            poke_interval=1,
            clock_skew=3600,
            timeout=60,
            deferrable=True,
        ).expand(update=UPDATES)
