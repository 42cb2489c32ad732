"""What the operators have in common: their hook, checks of their arguments, and how they end when killed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_healthex.client.calls import identifier
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.hooks.healthex import HealthExHook

_TEMPLATE_MARKS = ("{{", "{%", "{#")


class HealthExOperator(BaseOperator):
    """An operator with a ``healthex_conn_id`` and a ``project_id``."""

    healthex_conn_id: Any  # text by the time the hook is made
    project_id: Any

    @cached_property
    def hook(self) -> HealthExHook:
        """The hook of this task's connection."""
        return HealthExHook(self.healthex_conn_id)

    def on_kill(self) -> None:
        """End every wait, and send nothing more; the answers to what is in flight are still kept."""
        self.hook.cancel()

    def is_final(self, value: object) -> bool:
        """Whether the constructor has the value that `execute` will have: no template, and not mapped."""
        # A mapped operator's constructor runs on the worker, where an error must leave through `execute`.
        return not getattr(self, "_BaseOperator__from_mapped", False) and is_literal(value)

    def check_project_id(self, project_id: object) -> None:
        """Refuse, when the DAG is parsed, a project that can't be one."""
        if project_id not in (None, "") and self.is_final(project_id):
            identifier("project_id", project_id)

    def resolve_project_id(self) -> str:
        """Return the project: the argument, else the connection's."""
        given = self.project_id
        if given not in (None, ""):
            given = identifier("project_id", given)
        return self.hook.resolve_project_id(given)


def is_literal(value: object) -> bool:
    """Whether a value has nothing in it that Airflow renders or resolves."""
    if isinstance(value, str):
        return not any(mark in value for mark in _TEMPLATE_MARKS)
    if isinstance(value, Mapping):
        return all(map(is_literal, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_literal, value))
    # Not XComArg and the like, of which there are several.
    return value is None or isinstance(value, (bool, int, float, bytes))


def optional_flag(name: str, value: object) -> bool | None:
    """Return a flag, also from the text that a template renders; None where there is none."""
    if value is None or isinstance(value, bool):
        return value
    words = {"true": True, "false": False, "none": None, "": None}
    word = value.strip().lower() if isinstance(value, str) else "-"
    if word not in words:
        raise HealthExConfigurationError(f"{name} must be True, False or None (got {value!r})")
    return words[word]


def boolean(name: str, value: object) -> bool:
    """Return a switch that is not templated."""
    if not isinstance(value, bool):
        raise HealthExConfigurationError(f"{name} must be True or False (got {value!r})")
    return value
