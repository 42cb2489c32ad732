"""Waiting for deliveries to an SFTP server on the triggerer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_healthex.delivery import Expectation
from airflow_provider_healthex.delivery.tree import CONFIRMATION, TreeLook, Watch, look_at_tree
from airflow_provider_healthex.sftp import TRIGGERER, AsyncSftpServer
from airflow_provider_healthex.triggers.arrival import ArrivalTrigger


class HealthExSftpDataArrivalTrigger(ArrivalTrigger):
    """
    Fires when a delivery has arrived on an SFTP server, its deadline has passed, or it refuses for good; never raises.

    :param sftp_conn_id: the Airflow connection.
    :param watch: what the worker's first look showed, as :meth:`Watch.to_dict` gives it. The other parameters are
        those of :class:`~airflow_provider_healthex.triggers.healthex.HealthExDataArrivalTrigger`.
    """

    def __init__(self, *, sftp_conn_id: str, watch: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sftp_conn_id = sftp_conn_id
        self.watch = Watch(**watch)

    @staticmethod
    def _read(expectation: Mapping[str, Any]) -> Expectation:
        return Expectation.from_dict(expectation)

    def _storage_arguments(self) -> dict[str, Any]:
        return {"sftp_conn_id": self.sftp_conn_id, "watch": self.watch.to_dict()}

    def _open(self) -> AsyncSftpServer:
        return AsyncSftpServer(self.sftp_conn_id, TRIGGERER)

    def _look(self) -> TreeLook:
        return look_at_tree(self.expectation, self.watch, pause=min(CONFIRMATION, self.poke_interval))

    def _event(self, status: str, message: str) -> dict[str, Any]:
        return {**super()._event(status, message), "watch": self.watch.to_dict()}
