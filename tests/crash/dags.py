"""The DAG that every scenario runs: an operator, the sensor that waits for its data, and a task that is neither."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator, HealthExUpdatePatientOperator
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor, HealthExDataArrivalSensor

try:
    from airflow.providers.standard.operators.empty import EmptyOperator
except ModuleNotFoundError:
    from airflow.operators.empty import EmptyOperator

#: Requests at once, of a cohort.
CONCURRENCY = 4

#: Seconds that the sensor of a cohort waits.
COHORT_TIMEOUT = 45


def refresh(
    dag_id: str,
    patients: Sequence[str],
    *,
    bucket: str,
    cohort: bool = False,
    retries: int = 2,
    on_ambiguous: str = "assume_started",
    deferrable: bool = False,
) -> DAG:
    """
    Return the DAG of a scenario.

    :param patients: one, or those of a cohort.
    :param retries: of the operator.
    :param deferrable: whether the sensor waits on the triggerer.
    """
    retrying: dict[str, Any] = {"retries": retries, "retry_delay": timedelta(seconds=1)}
    waiting: dict[str, Any] = {
        "task_id": "arrival",
        "bucket_name": bucket,
        "bucket_key": "d/{projectId}/{healthexPatientId}/",
        "quiet_period": 0,
        "poke_interval": 1,
        "timeout": 100,
        "deferrable": deferrable,
        "retries": 3,
        "retry_delay": timedelta(seconds=1),
    }
    with DAG(dag_id, schedule=None) as dag:
        EmptyOperator(task_id="other")
        if cohort:
            requested = HealthExUpdateCohortOperator(
                task_id="refresh",
                patient_ids=list(patients),
                max_concurrency=CONCURRENCY,
                on_ambiguous=on_ambiguous,
                **retrying,
            )
            # Those who may never have been requested aren't worth waiting for to the end.
            HealthExCohortArrivalSensor(
                update=requested.output, min_fraction=0.9, **{**waiting, "timeout": COHORT_TIMEOUT}
            )
        else:
            one = HealthExUpdatePatientOperator(
                task_id="refresh", patient_id=patients[0], on_ambiguous=on_ambiguous, **retrying
            )
            HealthExDataArrivalSensor(update=one.output, **waiting)
    return dag
