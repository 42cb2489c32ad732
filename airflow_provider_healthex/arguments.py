"""Checks on the arguments of operators, sensors and triggers: at parse time where they are literal, else rendered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.moments import whole_seconds

#: The name of a mapped task in Airflow's UI: its chunk, and no patient.
CHUNK_NAME = "chunk {{ ti.map_index }}"

_TEMPLATE = re.compile(r"\{\{|\{%|\{#")
_WHOLE = re.compile(r"\s*[+-]?\d+\s*")


def is_rendered_later(value: Any) -> bool:
    """Whether Airflow may still change a value: a Jinja template, a task's output, or a collection with one in it."""
    if isinstance(value, str):
        return _TEMPLATE.search(value) is not None
    if isinstance(value, Mapping):
        return any(map(is_rendered_later, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(is_rendered_later, value))
    # XComArg, and what a mapped task group hands to its tasks: no common class on all versions of Airflow.
    return hasattr(value, "resolve") and hasattr(value, "iter_references")


def name_chunks_alone(task: Any) -> None:
    """Take `CHUNK_NAME`, the default, from a task that isn't mapped, and so has no chunk."""
    is_mapped = getattr(task, "_BaseOperator__from_mapped", False) or any(True for _ in task.iter_mapped_task_groups())
    if task.map_index_template == CHUNK_NAME and not is_mapped:
        task.map_index_template = None


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Return the value if it is one of the choices."""
    if value not in choices:
        raise HealthExConfigurationError(f"{name} must be one of {', '.join(map(repr, choices))} (got {value!r})")
    return value


def boolean(name: str, value: bool) -> bool:
    """Return the value if it is True or False: the text "false" would count as True."""
    if not isinstance(value, bool):
        raise HealthExConfigurationError(f"{name} must be True or False (got {value!r})")
    return value


def at_least(name: str, value: float | str, least: float, unit: str = "") -> float:
    """Return the number, or what a template was rendered to, if it is not below the least."""
    number = _number(value)
    if number is None or not least <= number < float("inf"):
        raise HealthExConfigurationError(f"{name} must be a number of at least {least:g}{unit} (got {value!r})")
    return number


def seconds(name: str, value: timedelta | float | str, least: float = 0) -> float:
    """Return a duration in seconds; given as such, as a timedelta, or as what a template was rendered to."""
    number = value.total_seconds() if isinstance(value, timedelta) else _number(value)
    if number is None or not least <= number < float("inf"):
        raise HealthExConfigurationError(
            f"{name} must be at least {least:g} s, as a number of seconds or a timedelta (got {value!r})"
        )
    return number


def fraction(name: str, value: float | str) -> float:
    """Return the number, or what a template was rendered to, if it is between 0 and 1."""
    number = _number(value)
    if number is None or not 0 <= number <= 1:
        raise HealthExConfigurationError(f"{name} must be a number from 0 to 1, such as 0.95 (got {value!r})")
    return number


def whole_number(name: str, value: int | str, least: int) -> int:
    """Return the whole number, or what a template was rendered to, if it is not below the least."""
    number = _number(value)
    if number is None or not least <= number < float("inf") or int(number) != number:
        raise HealthExConfigurationError(f"{name} must be a whole number of at least {least} (got {value!r})")
    return int(number)


def _number(value: Any) -> float | None:
    """Return a number, or None where the value is none; a whole number stays one."""
    if isinstance(value, str):
        try:
            return int(value) if _WHOLE.fullmatch(value) else float(value)
        except ValueError:
            return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def requested_at(name: str, value: str | datetime) -> datetime:
    """Return a moment as UTC in whole seconds; without a time zone it would be a guess, and is refused."""
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            raise HealthExConfigurationError(
                f"{name} must be ISO 8601, such as 2026-11-22T17:40:05+00:00 (got {value!r})"
            ) from None
    if not isinstance(moment, datetime):
        raise HealthExConfigurationError(
            f"{name} must be an ISO 8601 string or a datetime (got a {type(value).__name__})"
        )
    if moment.tzinfo is None:
        raise HealthExConfigurationError(
            f"{name} must have a time zone, such as 2026-11-22T17:40:05+00:00 (got {str(value)!r})"
        )
    return whole_seconds(moment)
