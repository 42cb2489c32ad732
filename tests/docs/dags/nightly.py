from datetime import datetime

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.common.compat.sdk import dag, task

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor

PATIENTS = ["17d4513f-73e8", "0b6f8c2e-11aa", "5c1d9e70-42b3", "9a27e6f4-08cd", "e3b05d18-97f2"]


@dag(schedule="0 2 * * *", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1)  # unpausing starts a run
def nightly():
    refresh = HealthExUpdateCohortOperator(task_id="refresh", patient_ids=PATIENTS, max_failures=2)
    arrival = HealthExCohortArrivalSensor(
        task_id="arrival",
        update=refresh.output,
        bucket_key="s3://YOUR-BUCKET/d/{projectId}/{healthexPatientId}/",
        min_fraction=0,  # load what has arrived at the deadline: without changes, nothing may come
        timeout=6 * 60 * 60,  # seconds
        deferrable=True,
    )

    @task(trigger_rule="all_done")  # also if refresh failed: its result is there
    def needs_action(update):
        for patient in update["patient_action_needed"] if update else []:
            print(f"Contact {patient['patient_id']}: {patient['reason']}")

    @task
    def load(delivery):
        for patient in delivery["arrived"]:
            for key in S3Hook().list_keys(delivery["bucket"], prefix=patient["prefix"]):
                print(f"Loading {key}")  # your own load

    needs_action(refresh.output)
    load(arrival.output)


nightly()
