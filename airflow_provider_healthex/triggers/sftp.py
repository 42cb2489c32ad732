"""Waiting for deliveries on an SFTP server on the triggerer: one patient's or a cohort's, and whatever is delivered."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

from airflow_provider_healthex.delivery.feed import Announced, Source
from airflow_provider_healthex.delivery.sftp_listing import CONFIRMATION
from airflow_provider_healthex.delivery.sources import SftpSource
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.storage.sftp import TRIGGERER, AsyncSftpServer
from airflow_provider_healthex.triggers.base import ArrivalTrigger
from airflow_provider_healthex.triggers.feed import DeliveryTrigger

__all__ = ["HealthExSftpDataArrivalTrigger", "HealthExSftpDeliveryTrigger"]


class HealthExSftpDataArrivalTrigger(ArrivalTrigger):
    """
    Waits on an SFTP server.

    :param sftp_conn_id: the Airflow connection. The other parameters are those of `ArrivalTrigger`.
    """

    def __init__(self, *, sftp_conn_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sftp_conn_id = sftp_conn_id

    def _storage_arguments(self) -> dict[str, Any]:
        return {"sftp_conn_id": self.sftp_conn_id}

    def _open(self) -> AsyncSftpServer:
        confirmation = min(CONFIRMATION, self.schedule.poke_interval)
        return AsyncSftpServer(self.sftp_conn_id, TRIGGERER, confirmation=confirmation)


class HealthExSftpDeliveryTrigger(DeliveryTrigger):
    """
    Fires for deliveries on an SFTP server that have settled, for an ``AssetWatcher``; on Airflow 3.1 and newer.

    Events, state and errors are those of `DeliveryTrigger`. SFTP doesn't report the server's clock: a patient is in an
    event when nothing of theirs has changed between polls for ``quiet_period`` seconds. A restart starts that anew.

    :param path: where HealthEx delivers: a path that ends in ``/``, or one file a patient, with
        ``{healthexPatientId}`` or ``{externalId}``. Separate variables by ``/``. No globs.
    :param quiet_period: seconds, 300 by default.
    :param since: the start, an ISO string or a datetime, with a time zone, compared with the server's times. Without
        one, what is there at the first poll is not announced.
    :param poke_interval: seconds between two polls, 120 by default.
    :param sftp_conn_id: the connection of type SFTP.
    :raises HealthExConfigurationError: for an argument that can't be used.
    """

    argument_names = ("path", "quiet_period", "since", "poke_interval", "sftp_conn_id")
    source_class = SftpSource

    def __init__(
        self,
        path: str,
        quiet_period: float = 300,
        since: str | datetime | None = None,
        poke_interval: float = 120,
        sftp_conn_id: str = "sftp_default",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if isinstance(path, str) and "://" in path:
            raise HealthExConfigurationError(f"path must be a path on the server (got the URL {path!r})")
        if not isinstance(sftp_conn_id, str) or not sftp_conn_id:
            raise HealthExConfigurationError(f"sftp_conn_id must be a connection's id (got {sftp_conn_id!r})")
        self.path = path
        self.sftp_conn_id = sftp_conn_id
        self._prepare(path, quiet_period, since, poke_interval)

    async def _start(self, storage: Any, source: Source) -> Announced:
        if self._since is not None:
            return await super()._start(storage, source)
        while (announced := await self._list(storage, self._feed.start(source))) is None:
            await asyncio.sleep(self.poke_interval)
        return announced

    def _open(self) -> AsyncSftpServer:
        return AsyncSftpServer(self.sftp_conn_id, TRIGGERER)

    def _place(self) -> tuple[str, ...]:
        return (self.sftp_conn_id,)
