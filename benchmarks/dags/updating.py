"""The cohort operator with and without its journal, one after the other on one Airflow."""

from __future__ import annotations

import json
import os

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator

PATIENTS: list[str] = json.loads(os.environ.get("BENCH_PATIENT_IDS", '["patient-00001"]'))
CONCURRENCIES: list[int] = json.loads(os.environ.get("BENCH_CONCURRENCIES", "[8]"))

with DAG("bench_updating", schedule=None):
    # The first one pays for the imports of all.
    previous = HealthExUpdateCohortOperator(task_id="warm_up", patient_ids=PATIENTS[:8], max_failures=8, durable=False)
    for concurrency in CONCURRENCIES:
        for durable in (False, True):
            task = HealthExUpdateCohortOperator(
                task_id=f"{'durable' if durable else 'plain'}_{concurrency}",
                patient_ids=PATIENTS,
                max_concurrency=concurrency,
                max_failures=0.5,
                durable=durable,
            )
            previous >> task
            previous = task
