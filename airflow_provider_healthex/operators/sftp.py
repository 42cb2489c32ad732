"""The operators that need an SFTP server (extra ``sftp``)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.operators.consents import (
    DeliveryStorage,
    HealthExListConsentedPatientsOperator,
    StalePatientsOperator,
)
from airflow_provider_healthex.sensors.checks import plain_seconds
from airflow_provider_healthex.storage.sftp import SftpServer

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import XComArg


class HealthExSftpListStalePatientsOperator(StalePatientsOperator):
    """
    Lists the consented patients for whom nothing was delivered to an SFTP server lately.

    It decides and returns as `HealthExListStalePatientsOperator` does. Two runs within minutes are not protected: set
    ``max_active_runs=1`` as well. The server's clock is unknown: a patient is stale if the newest file is ``max_age``
    and 60 s old by the worker's clock. Files that are dated after now are not counted. A patient whose files can't be
    seen (behind a symbolic link) is left out. Both are logged as a warning.

    :param path: where HealthEx delivers (templated), as the sensors take it: one string, with ``{healthexPatientId}``
        and no ``{externalId}``.
    :param max_age: seconds or a timedelta (templated).
    :param wildcard_match: read ``path`` as a glob.
    :param sftp_conn_id: the connection of type SFTP (templated).
    :param project_id: the project, default the connection's (templated).
    :param min_days_left: leave out patients whose consent ends within this many days; 0 by default.
    :param chunk_size: patients in a chunk; None: one list.
    :param healthex_conn_id: the Airflow connection to HealthEx (templated).
    :returns: as `HealthExListStalePatientsOperator`.
    :raises HealthExConfigurationError: on construction, for an argument that can't be used.
    :raises AirflowFailException: from the typed error, for permanent errors.
    :raises HealthExError: for transient errors; Airflow may retry.
    """

    template_fields: Sequence[str] = (
        *HealthExListConsentedPatientsOperator.template_fields,
        "path",
        "max_age",
        "sftp_conn_id",
    )
    clock_skew = 60.0

    def __init__(
        self,
        *,
        path: str | XComArg,
        max_age: timedelta | float | str | XComArg,
        min_days_left: float = 0,
        chunk_size: int | None = None,
        project_id: str | XComArg | None = None,
        wildcard_match: bool = False,
        sftp_conn_id: str | XComArg = "sftp_default",
        healthex_conn_id: str | XComArg = HealthExHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            project_id=project_id,
            min_days_left=min_days_left,
            chunk_size=chunk_size,
            healthex_conn_id=healthex_conn_id,
            **kwargs,
        )
        self.path: Any = path
        self.max_age = plain_seconds(max_age)
        self.wildcard_match = wildcard_match
        self.sftp_conn_id: Any = sftp_conn_id
        self._check(path)

    def _open(self) -> tuple[DeliveryStorage, str]:
        return SftpServer(self.sftp_conn_id), self.path
