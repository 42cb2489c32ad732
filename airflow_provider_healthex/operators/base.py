"""The operators' common parts: their hook, checks of their arguments, and which errors Airflow retries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator

from airflow_provider_healthex.arguments import is_rendered_later
from airflow_provider_healthex.client.calls import identifier
from airflow_provider_healthex.exceptions import (
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExError,
    HealthExRateLimitError,
    HealthExServerError,
    HealthExUpdateAmbiguousError,
)
from airflow_provider_healthex.hooks.healthex import HealthExHook

ON_AMBIGUOUS = ("fail", "retry", "assume_started")


class HealthExOperator(BaseOperator):
    """An operator with a ``healthex_conn_id`` and a ``project_id``."""

    healthex_conn_id: Any  # text by the time the hook is made
    project_id: Any

    @cached_property
    def hook(self) -> HealthExHook:
        """The hook of this task's connection."""
        return HealthExHook(self.healthex_conn_id)

    def on_kill(self) -> None:
        """End every wait, and send nothing more; the answers to requests in flight are still kept."""
        self.hook.cancel()

    def is_known_when_parsed(self, value: object) -> bool:
        """Whether the constructor has the value that `execute` will have: no template, and not mapped."""
        # A mapped operator's constructor runs on the worker, where an error must leave through `execute`.
        return not getattr(self, "_BaseOperator__from_mapped", False) and not is_rendered_later(value)

    def check_project_id(self, project_id: object) -> None:
        """Refuse an unusable project when the DAG is parsed."""
        if project_id not in (None, "") and self.is_known_when_parsed(project_id):
            identifier("project_id", project_id)

    def resolve_project_id(self) -> str:
        """Return the project: the argument, else the connection's."""
        if self.project_id in (None, ""):
            return self.hook.resolve_project_id()
        return identifier("project_id", self.project_id)


@contextmanager
def fail_on_permanent_errors(on_ambiguous: str = "fail") -> Iterator[None]:
    """Turn an error that must not or need not be retried into `AirflowFailException`, which Airflow doesn't retry."""
    try:
        yield
    except HealthExError as error:
        if is_retryable(error, on_ambiguous):
            raise
        raise AirflowFailException(str(error)) from error


def is_retryable(error: HealthExError, on_ambiguous: str) -> bool:
    """Whether another request can help and can't start a second retrieval."""
    if isinstance(error, HealthExUpdateAmbiguousError):
        return on_ambiguous == "retry"
    return isinstance(error, (HealthExConnectionError, HealthExRateLimitError, HealthExServerError))


def optional_flag(name: str, value: object) -> bool | None:
    """Return True, False or None, also from the text that a template renders."""
    if value is None or isinstance(value, bool):
        return value
    words = {"true": True, "false": False, "none": None, "": None}
    word = value.strip().lower() if isinstance(value, str) else "-"
    if word not in words:
        raise HealthExConfigurationError(f"{name} must be True, False or None (got {value!r})")
    return words[word]
