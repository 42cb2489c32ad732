"""Where Airflow 2.11 and 3.x differ in what a sensor can know of its own time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, cast

try:
    from airflow.sdk.exceptions import AirflowRescheduleException
except ImportError:  # Airflow 2.11
    from airflow.exceptions import AirflowRescheduleException  # type: ignore[no-redef, attr-defined, unused-ignore]

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = ["AirflowRescheduleException", "first_reschedule", "leave_time_to_conclude", "try_start"]


def first_reschedule(context: Context) -> float | None:
    """Return when a rescheduled sensor's wait began, by the rule of the Airflow it runs on."""
    ti: Any = context["ti"]
    if hasattr(ti, "get_first_reschedule_date"):
        first = ti.get_first_reschedule_date(context)
    else:
        from airflow.sensors.base import _orig_start_date  # Airflow 2.11

        first_try = (ti.max_tries or 0) - (ti.task.retries or 0) + 1
        first = _orig_start_date(ti.dag_id, ti.task_id, ti.run_id, ti.map_index, first_try)
    return cast("datetime", first).timestamp() if first else None


def try_start(context: Context, wait_started: float) -> float:
    """Return when this try of a rescheduled sensor began: on Airflow 2.11 the wait may have, in an earlier try."""
    ti: Any = context["ti"]
    start = None if hasattr(ti, "get_first_reschedule_date") else getattr(ti, "start_date", None)
    return max(wait_started, start.timestamp()) if start else wait_started


def leave_time_to_conclude(task: Any, context: Context, grace: float) -> timedelta | None:
    """
    Lengthen a resumed task's execution_timeout by some seconds: Airflow 2.11 would fail it first, and not say why.

    :returns: the author's own limit; None where it is as it was.
    """
    ti: Any = context["ti"]
    own: timedelta | None = task.execution_timeout
    if own is None or hasattr(ti, "get_first_reschedule_date") or not (ti.next_method and ti.start_date):
        return None
    task.execution_timeout = max(own, datetime.now(timezone.utc) - ti.start_date + timedelta(seconds=grace))
    return own
