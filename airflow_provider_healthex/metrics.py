"""
Metrics, sent by Airflow's ``Stats`` to StatsD, Datadog or OpenTelemetry, as Airflow's ``[metrics]`` says.

Under Airflow's prefix, ``airflow.`` by default. They have no tags, and no id is in a name.

| Name | Type | Counts or measures |
|---|---|---|
| ``healthex.requests.accepted`` | counter | updates that HealthEx accepted: requests of the operators, after retries |
| ``healthex.requests.needs_patient_action`` | counter | updates that need patient action |
| ``healthex.requests.ambiguous`` | counter | updates whose outcome is unknown |
| ``healthex.requests.failed`` | counter | updates that HealthEx rejected, or that never reached it |
| ``healthex.delivery_time`` | timer | from ``requested_at`` to the newest object, for each patient who has arrived |
| ``healthex.pokes`` | counter | pokes of sensors, on workers and triggerers |
| ``healthex.lists`` | counter | LIST requests to S3, also of the feed of deliveries |

``healthex.delivery_time`` is by the storage's clock: of an SFTP server that is off, it is off.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import Stats


def count_request(outcome: str) -> None:
    """
    Count a requested update.

    :param outcome: a kind of `PatientOutcome`.
    """
    Stats.incr(f"healthex.requests.{outcome}")


def time_delivery(seconds: timedelta) -> None:
    """Record how long a patient's delivery has taken."""
    Stats.timing("healthex.delivery_time", seconds)


def count_poke() -> None:
    """Count a sensor's poke."""
    Stats.incr("healthex.pokes")


def count_lists(requests: int) -> None:
    """Count LIST requests to S3."""
    Stats.incr("healthex.lists", requests)
