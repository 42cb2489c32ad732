"""A delivery to an SFTP server, waited for in each mode."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

try:
    from airflow_provider_healthex.sensors.sftp import HealthExSftpDataArrivalSensor
except ModuleNotFoundError:  # the extra sftp isn't installed
    HealthExSftpDataArrivalSensor = None

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
