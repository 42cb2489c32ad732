"""A refresh of many patients twice: as one would write it without us, and with the cohort's operator and sensor."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from typing import Any

import requests
from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor
from airflow.providers.common.compat.sdk import DAG, BaseHook, task

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor

PATIENTS: list[str] = json.loads(os.environ.get("BENCH_PATIENT_IDS", '["patient-00001"]'))
MAPPED: list[str] = json.loads(os.environ.get("BENCH_MAPPED_IDS", '["patient-00002"]'))
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


with DAG("bench_mapped", schedule=None):
    asked = ask.expand(patient_id=MAPPED)
    arrival = S3KeySensor.partial(
        task_id="arrival",
        bucket_name=BUCKET,
        wildcard_match=True,
        check_fn=is_fresh,
        metadata_keys=["LastModified"],
        **WAIT,
    ).expand(bucket_key=[f"d/{PROJECT}/{patient_id}/*" for patient_id in MAPPED])
    asked >> arrival

with DAG("bench_cohort", schedule=None):
    refresh = HealthExUpdateCohortOperator(task_id="refresh", patient_ids=PATIENTS, max_concurrency=16)
    HealthExCohortArrivalSensor(
        task_id="arrival",
        update=refresh.output,
        bucket_name=BUCKET,
        bucket_key="d/{projectId}/{healthexPatientId}/",
        quiet_period=0,
        **WAIT,
    )
