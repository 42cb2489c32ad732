"""Checks on what an author gives an operator or a sensor, with messages that say what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from airflow_provider_healthex.exceptions import HealthExConfigurationError


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Return the value if it is one of the choices."""
    if value not in choices:
        raise HealthExConfigurationError(f"{name} is {value!r}; give one of {', '.join(map(repr, choices))}.")
    return value


def at_least(name: str, value: float, least: float, unit: str = "") -> float:
    """Return the number if it is not below the least."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise HealthExConfigurationError(f"{name} is {value!r}; give a number of at least {least}{unit}.")
    return value


def fraction(name: str, value: float) -> float:
    """Return the number if it is between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise HealthExConfigurationError(f"{name} is {value!r}; give a number from 0 to 1, such as 0.95.")
    return value


def whole_number(name: str, value: int, least: int) -> int:
    """Return the whole number if it is not below the least."""
    if int(at_least(name, value, least)) != value:
        raise HealthExConfigurationError(f"{name} is {value!r}; give a whole number.")
    return int(value)


def baseline(name: str, value: str | datetime) -> datetime:
    """Return a moment as UTC in whole seconds; without a time zone it would be a guess, and is refused."""
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            raise HealthExConfigurationError(
                f"{name} is {value!r}; write it as ISO 8601, such as 2026-11-22T17:40:05+00:00."
            ) from None
    if not isinstance(moment, datetime):
        raise HealthExConfigurationError(f"{name} is a {type(value).__name__}; give an ISO string or a datetime.")
    if moment.tzinfo is None:
        raise HealthExConfigurationError(
            f"{name} is {value!r}, which has no time zone; write it as 2026-11-22T17:40:05+00:00."
        )
    return moment.astimezone(timezone.utc).replace(microsecond=0)
