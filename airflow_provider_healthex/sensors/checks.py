"""Checks of a sensor's arguments when the DAG is parsed, and of what they may not be at all."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from airflow_provider_healthex.arguments import is_rendered_later
from airflow_provider_healthex.client.models import UNRECOGNIZED
from airflow_provider_healthex.delivery.template import refuse_foreign_syntax
from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: Templates of a moment that is another one each time that Airflow renders them.
_MOVING = re.compile(r"\b(?:ti|task_instance)\.(?:start_date|queued_dttm)\b|\b(?:utcnow|now|today)\(")

#: Replaces a value that only a template knows, in checks at parse time.
STAND_IN = "rendered-later"

_BY_KIND = "transient errors are retried in every mode, permanent ones fail the task. Use soft_fail to skip on timeout"

#: Arguments that no sensor of this package supports, and why.
REFUSED_ARGUMENTS = {"silent_fail": _BY_KIND, "never_fail": _BY_KIND}


def refuse_arguments(sensor: Any) -> None:
    """Check the attributes, too: default_args reach a parent's constructor without passing ours."""
    for name, reason in sensor.refused_arguments.items():
        value = getattr(sensor, name, None)
        if value and value != ["Size", "Key"]:  # metadata_keys, by default
            raise refused(sensor, name, reason)


def refused(sensor: Any, name: str, reason: str) -> HealthExConfigurationError:
    """Return the error for an argument that isn't supported."""
    return HealthExConfigurationError(f"{name} is not supported by {type(sensor).__name__}: {reason}")


def existence_proves_nothing(sensor: Any, update: Any, since: Any) -> None:
    """Refuse a wait without a moment since which data counts."""
    if update is None and since is None:
        raise HealthExConfigurationError(
            f"{type(sensor).__name__} needs update=… (the operator's output) or since=… (a moment): the objects of an "
            "earlier delivery are there already, so that existence proves nothing."
        )


def known(value: Any, otherwise: Any = STAND_IN) -> Any:
    """Return a literal value, and something else for one that is rendered later."""
    return otherwise if is_rendered_later(value) else value


def literals(paths: Any) -> list[Any]:
    """Return those of one or several paths that are literal."""
    return [path for path in (paths if isinstance(paths, (list, tuple)) else [paths]) if not is_rendered_later(path)]


def plain_seconds(value: Any) -> Any:
    """Return a timedelta as seconds, which the rendered fields of Airflow's UI can show; anything else as it is."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def recognized(value: Any) -> str | None:
    """Return an id of the service, or None where it was none that a path could take."""
    return value if isinstance(value, str) and value != UNRECOGNIZED else None


def short(value: str) -> str:
    """Return an id as logs and messages show it: enough to find it, and not all of it."""
    return value if len(value) <= 12 else f"{value[:8]}…"


def refuse_pasted_templates(path: Any) -> None:
    """Refuse another system's variables before Jinja renders ``{{orgId}}`` to an error that names no cause."""
    for each in path if isinstance(path, list) else [path]:
        if isinstance(each, str):
            refuse_foreign_syntax(each)


def no_result() -> HealthExConfigurationError:
    """Return the error for an operator that has left nothing to wait for."""
    return HealthExConfigurationError(
        "update is None: the operator left no result. It was skipped, or marked success by hand; clear it, or give "
        "since=…"
    )


def check_update(sensor: Any) -> None:
    """Refuse an update that can't become an operator's result, when the DAG is parsed."""
    update = sensor.update
    if hasattr(update, "output") and hasattr(update, "task_id"):
        raise HealthExConfigurationError(
            f"update must be the operator's output, and is the operator itself: give update={update.task_id}.output"
        )
    if callable(update) and not hasattr(update, "resolve"):
        raise HealthExConfigurationError("update must be a task's output, and is a function: call it, update=…()")
    if isinstance(update, str) and not (is_rendered_later(update) and _renders_natively(sensor)):
        raise HealthExConfigurationError(
            f"update must be the operator's output, and is a string ({update!r}): give update=refresh.output "
            "itself, not a template of it."
        )


def _renders_natively(sensor: Any) -> bool:
    own = getattr(sensor, "render_template_as_native_obj", None)  # Airflow 3.3
    if own is not None:
        return bool(own)
    dag = getattr(sensor, "_dag", None)
    return dag is None or bool(dag.render_template_as_native_obj)  # without a DAG yet, it may turn out so


def refuse_moving(since: Any, *, reschedule: bool) -> None:
    """Refuse a moment that each process of a rescheduled wait would render anew, and so wait without end."""
    found = _MOVING.search(since) if reschedule and isinstance(since, str) and is_rendered_later(since) else None
    if found:
        raise HealthExConfigurationError(
            f"since is {since!r}, and {found.group()!r} is another moment at each poke of mode='reschedule': the wait "
            "would never end. Give update=refresh.output, a fixed moment such as {{ dag_run.start_date }}, or "
            "deferrable=True."
        )


def file_name(name: str, value: Any) -> str | None:
    """Return a file's name or ending, or None."""
    if value is None:
        return None
    if not isinstance(value, str) or not value or any(character in value for character in "/*?"):
        raise HealthExConfigurationError(
            f"{name} must be a file's name, or its ending with a dot, without path and glob (got {value!r})"
        )
    return value
