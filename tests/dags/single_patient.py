"""DAGs of the tests. They stand in a file, as Airflow reads no others."""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

PATH = "d/{projectId}/{healthexPatientId}/"
BUCKET = "{{ dag_run.conf['bucket'] }}"
QUICK = {"poke_interval": 1, "quiet_period": 1, "timeout": 60}

with DAG("every_mode", schedule=None) as every_mode:
    refresh = HealthExUpdatePatientOperator(task_id="refresh", patient_id=patients.IN_PROGRESS)
    for task_id, how in {"poke": {}, "reschedule": {"mode": "reschedule"}, "deferred": {"deferrable": True}}.items():
        HealthExDataArrivalSensor(
            task_id=task_id, update=refresh.output, bucket_name=BUCKET, bucket_key=PATH, **how, **QUICK
        )

with DAG("mapped", schedule=None) as mapped:
    refresh_each = HealthExUpdatePatientOperator.partial(task_id="refresh").expand(
        patient_id=[patients.IN_PROGRESS, patients.PARTIAL, patients.SEVERAL_FILES]
    )
    HealthExDataArrivalSensor.partial(
        task_id="arrival", bucket_name=BUCKET, bucket_key=PATH, deferrable=True, **{**QUICK, "quiet_period": 3}
    ).expand(update=refresh_each.output)

with DAG("nothing_comes", schedule=None) as nothing_comes:
    nothing = HealthExUpdatePatientOperator(task_id="refresh", patient_id=patients.NOTHING_CHANGED)
    for task_id, how in {"poke": {}, "reschedule": {"mode": "reschedule"}, "deferred": {"deferrable": True}}.items():
        for soft_fail in (False, True):
            HealthExDataArrivalSensor(
                task_id=f"{task_id}_{'skips' if soft_fail else 'fails'}",
                update=nothing.output,
                bucket_name=BUCKET,
                bucket_key=PATH,
                soft_fail=soft_fail,
                **how,
                **{**QUICK, "timeout": 2},
            )

with DAG("retried", schedule=None) as retried:
    HealthExUpdatePatientOperator(
        task_id="refresh", patient_id=patients.IN_PROGRESS, retries=2, retry_delay=timedelta(seconds=0)
    )
