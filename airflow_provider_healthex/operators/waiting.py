"""The wait of an operator that also waits: the S3 sensor, made of the operator's arguments and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_provider_healthex.arguments import at_least, boolean
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError
from airflow_provider_healthex.sensors.compat import leave_time_to_conclude

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

#: The sensor's arguments that the operator has, too, under the same names.
ARGUMENTS = (
    "bucket_key",
    "bucket_name",
    "external_id",
    "org_id",
    "min_objects",
    "marker",
    "quiet_period",
    "clock_skew",
    "manifest_key",
    "wildcard_match",
    "deferrable",
    "aws_conn_id",
    "poke_interval",
    "timeout",
)
#: The XCom key of HealthEx's answer, beside the sensor's result. It stays where a deferred task resumes.
ANSWER_KEY = "update"


def check_wait(task: Any) -> None:
    """
    Refuse what the sensor would refuse, as far as it isn't rendered later: before a request, which is billed.

    :raises HealthExConfigurationError: for an argument that can't be used.
    """
    # The sensors import boto3, which an operator that doesn't wait can do without.
    from airflow_provider_healthex.sensors.bucket import check_literals
    from airflow_provider_healthex.sensors.request import check_patient

    if not task.bucket_key:
        raise HealthExConfigurationError(
            f"wait_for_arrival=True needs bucket_key, the path that HealthEx delivers to (got {task.bucket_key!r})"
        )
    from_update = {"update": None, "gets_update": True, "since": None, "patient_id": None, "project_id": None}
    sensor = SimpleNamespace(**_arguments(task), **from_update, reschedule=False, botocore_config=None)
    boolean("deferrable", sensor.deferrable)
    boolean("wildcard_match", sensor.wildcard_match)
    at_least("timeout", sensor.timeout, 0, " s")
    at_least("poke_interval", sensor.poke_interval, 0, " s")
    check_patient(sensor, check_literals(sensor), ("manifest_key", sensor.manifest_key))


def leave_time(task: Any, context: Context) -> timedelta | None:
    """Do for the task what the sensor does for itself before it resumes: `leave_time_to_conclude`."""
    from airflow_provider_healthex.sensors.bucket import GRACE

    return leave_time_to_conclude(task, context, GRACE)


def wait(
    task: Any,
    context: Context,
    answer: Mapping[str, Any] | None,
    step: Callable[[HealthExDataArrivalSensor], Any],
) -> Any:
    """
    Take a step of the wait for an accepted update, and return the sensor's result.

    :param answer: HealthEx's; None where the task resumes.
    :param step: ``wait`` or ``resume_execution`` of the sensor.
    :raises AirflowFailException: in place of any other error, where a retry would request the update again.
    """
    from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

    try:
        ti: Any = context["ti"]
        if answer is None:
            answer = ti.xcom_pull(task_ids=ti.task_id, key=ANSWER_KEY, map_indexes=ti.map_index)
        else:
            ti.xcom_push(key=ANSWER_KEY, value=answer)
        if not answer:
            raise HealthExError(f"The task's XCom {ANSWER_KEY!r} is missing: HealthEx's answer, to go on waiting with.")
        sensor = task.sensor = HealthExDataArrivalSensor(
            task_id=task.task_id,
            update=answer,
            execution_timeout=task.own_execution_timeout or task.execution_timeout,
            outlets=task.outlets,
            **_arguments(task),
        )
        return step(sensor)
    except (TaskDeferred, AirflowFailException, AirflowSensorTimeout, AirflowSkipException):
        raise
    except (Exception, AirflowTaskTimeout) as error:
        if task.durable and context.get("task_state_store") is not None:
            raise
        raise AirflowFailException(
            f"{type(error).__name__}: {error} Not retried: HealthEx has accepted the update, and this task would "
            "request it again. To wait for it without a request, use HealthExDataArrivalSensor with since=…"
        ) from error


def _arguments(task: Any) -> dict[str, Any]:
    return {name: getattr(task, name) for name in ARGUMENTS}
