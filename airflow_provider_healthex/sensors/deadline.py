"""The moments of a sensor's wait: when it began, its deadline, and the limit that sets the deadline."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_healthex.delivery.schedule import PokeSchedule
from airflow_provider_healthex.sensors.compat import first_reschedule, try_start

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class Moments(NamedTuple):
    """
    The moments of one wait.

    :param schedule: its start, deadline and pokes.
    :param limit: the argument that the deadline comes from.
    :param goes_on: whether another process of this wait has poked before.
    """

    schedule: PokeSchedule
    limit: str
    goes_on: bool


def moments(
    sensor: Any,
    context: Context,
    *,
    execution_timeout: timedelta | None,
    enough_after: float | None,
    deadline: float | None,
) -> Moments:
    """
    Work out a wait's moments.

    :param execution_timeout: the author's.
    :param enough_after: seconds after which a part of the cohort is enough, or None.
    :param deadline: of the wait that goes on here, if one does: epoch seconds.
    """
    now = time.time()
    started = try_started = now
    rescheduled = None
    if sensor.reschedule and not sensor.deferrable:
        rescheduled = first_reschedule(context)
        started = rescheduled or now
        try_started = try_start(context, started)
    ends = {"timeout": started + sensor.timeout}
    if execution_timeout is not None:
        ends["execution_timeout"] = try_started + execution_timeout.total_seconds()
    limit = min(reversed(ends), key=ends.__getitem__)
    if deadline is not None:  # both began when the wait did
        started, ends[limit] = deadline - (ends[limit] - now), deadline
    schedule = PokeSchedule(
        started=started,
        deadline=ends[limit],
        poke_interval=sensor.poke_interval,
        exponential_backoff=bool(sensor.exponential_backoff),
        max_wait=sensor.max_wait.total_seconds() if sensor.max_wait else None,
        enough_at=None if enough_after is None else started + enough_after,
    )
    return Moments(schedule, limit, goes_on=deadline is not None or rescheduled is not None)
