"""What the operators have in common: the hook of their connection, and how it ends when the task is killed."""

from __future__ import annotations

from functools import cached_property

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_healthex.hooks.healthex import HealthExHook


class HealthExOperator(BaseOperator):
    """An operator with a ``healthex_conn_id``."""

    healthex_conn_id: str

    @cached_property
    def hook(self) -> HealthExHook:
        """The hook of this task's connection."""
        return HealthExHook(self.healthex_conn_id)

    def on_kill(self) -> None:
        """End every wait, and send nothing more; the answers to what is in flight are still noted."""
        self.hook.cancel()
