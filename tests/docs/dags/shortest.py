from datetime import datetime

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.common.compat.sdk import dag, task

from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1)
def refresh_one_patient():
    refresh = HealthExUpdatePatientOperator(task_id="refresh", patient_id="17d4513f-73e8")
    arrival = HealthExDataArrivalSensor(
        task_id="arrival",
        update=refresh.output,
        bucket_key="s3://YOUR-BUCKET/d/{projectId}/{healthexPatientId}/",
        deferrable=True,
    )

    @task
    def read(delivery):
        for key in delivery["keys"]:
            print(len(S3Hook().read_key(key, delivery["bucket"])), "characters")

    read(arrival.output)


refresh_one_patient()
