"""Which errors Airflow may retry: those where a retry can help, and can't start a second retrieval."""

from __future__ import annotations

from airflow_provider_healthex.exceptions import (
    HealthExConnectionError,
    HealthExError,
    HealthExRateLimitError,
    HealthExServerError,
    HealthExUpdateAmbiguousError,
)

ON_AMBIGUOUS = ("fail", "retry", "assume_started")


def may_be_retried(error: HealthExError, on_ambiguous: str) -> bool:
    """Whether another request can help and can't start a second retrieval."""
    if isinstance(error, HealthExUpdateAmbiguousError):
        return on_ambiguous == "retry"
    return isinstance(error, (HealthExConnectionError, HealthExRateLimitError, HealthExServerError))
