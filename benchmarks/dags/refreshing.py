"""
A refresh of many patients: as one would write it without us, and with the cohort's operator and sensor.

Besides, two tasks of Airflow's own that do nothing, of which the second defers once: what Airflow itself costs.
"""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from typing import Any

import requests
from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor
from airflow.providers.common.compat.sdk import DAG, BaseHook, task
from airflow.providers.standard.sensors.filesystem import FileSensor

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor

#: The patients of each number: of the mapped variant and of ours.
MAPPED: dict[str, list[str]] = json.loads(os.environ.get("BENCH_MAPPED", '{"1": ["patient-00002"]}'))
COHORTS: dict[str, list[str]] = json.loads(os.environ.get("BENCH_COHORTS", '{"1": ["patient-00001"]}'))
FOLDER = os.environ.get("BENCH_FOLDER", "/nowhere")
BUCKET = os.environ.get("BENCH_BUCKET", "healthex-deliveries")
PROJECT = "project-demo"
WAIT: dict[str, Any] = {"deferrable": True, "poke_interval": 5, "timeout": 3600}


@task
def ask(patient_id: str) -> str:
    """Ask for one patient, and return when."""
    connection = BaseHook.get_connection("healthex_default")
    with requests.Session() as session:
        session.trust_env = False
        minted = session.post(
            f"{connection.host}/v1/auth/token",
            json={"apiKey": connection.login, "apiSecret": connection.password},
            timeout=30,
        )
        minted.raise_for_status()
        requested_at = datetime.now(timezone.utc).replace(microsecond=0)
        answer = session.post(
            f"{connection.host}/v1/projects/{PROJECT}/recruitment/identified-patients/{patient_id}/$updateData",
            json={},
            headers={"Authorization": f"Bearer {minted.json()['token']}"},
            timeout=120,
        )
        answer.raise_for_status()
    return requested_at.isoformat()


def is_fresh(files: list[dict[str, Any]], **context: Any) -> bool:
    """Whether an object is newer than the request of the same patient."""
    asked = context["ti"].xcom_pull(task_ids="ask", map_indexes=context["ti"].map_index)
    return any(_moment(file["LastModified"]) >= datetime.fromisoformat(asked) for file in files)


def _moment(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


@task
def nothing() -> None:
    """Do nothing, in a worker."""


for count, patients in MAPPED.items():
    with DAG(f"bench_mapped_{count}", schedule=None):
        asked = ask.expand(patient_id=patients)
        arrival = S3KeySensor.partial(
            task_id="arrival",
            bucket_name=BUCKET,
            wildcard_match=True,
            check_fn=is_fresh,
            metadata_keys=["LastModified"],
            **WAIT,
        ).expand(bucket_key=[f"d/{PROJECT}/{patient_id}/*" for patient_id in patients])
        asked >> arrival

for count, patients in COHORTS.items():
    with DAG(f"bench_cohort_{count}", schedule=None):
        refresh = HealthExUpdateCohortOperator(task_id="refresh", patient_ids=patients, max_concurrency=16)
        HealthExCohortArrivalSensor(
            task_id="arrival",
            update=refresh.output,
            bucket_name=BUCKET,
            bucket_key="d/{projectId}/{healthexPatientId}/",
            quiet_period=0,
            **WAIT,
        )

for what in ("warm_up", "floor"):
    with DAG(f"bench_{what}", schedule=None):
        nothing() >> FileSensor(task_id="arrival", filepath=f"{FOLDER}/{what}", **WAIT)
