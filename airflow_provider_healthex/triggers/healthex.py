"""Waiting for deliveries in S3 on the triggerer: one patient's or a cohort's, and whatever is delivered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from airflow_provider_healthex.delivery.sources import S3Source
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.storage.s3 import TRIGGERER, AsyncBucket, AwsAccess
from airflow_provider_healthex.storage.s3_names import check_bucket_name
from airflow_provider_healthex.triggers.base import ArrivalTrigger
from airflow_provider_healthex.triggers.feed import DeliveryTrigger

__all__ = ["HealthExDataArrivalTrigger", "HealthExDeliveryTrigger"]


class HealthExDataArrivalTrigger(ArrivalTrigger):
    """
    Waits in a bucket.

    :param bucket_name: the bucket.
    :param aws: the parameters of `AwsAccess`. The other parameters are those of `ArrivalTrigger`.
    """

    def __init__(self, *, bucket_name: str, aws: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bucket_name = bucket_name
        self.aws = AwsAccess(**aws)

    def _storage_arguments(self) -> dict[str, Any]:
        return {"bucket_name": self.bucket_name, "aws": asdict(self.aws)}

    def _open(self) -> AsyncBucket:
        return AsyncBucket(self.bucket_name, self.aws, TRIGGERER)


class HealthExDeliveryTrigger(DeliveryTrigger):
    """
    Fires for deliveries in a bucket that have settled, for an ``AssetWatcher``; on Airflow 3.

    Events, state and errors are those of `DeliveryTrigger`. A patient is in an event when their newest object since the
    last one is ``quiet_period`` seconds old by S3's clock.

    :param bucket_name: the bucket: its name, or an access point's alias or ARN.
    :param bucket_key: where HealthEx delivers, in the bucket: a path that ends in ``/``, or one key a patient, with
        ``{healthexPatientId}`` or ``{externalId}``. Separate variables by ``/``: ids may contain any other sign. No
        globs.
    :param quiet_period: seconds, 300 by default.
    :param since: the start, an ISO string or a datetime, with a time zone: earlier objects are ignored. Without one,
        the trigger's first start. If a state is kept, it is of the first start alone; another ``since`` makes it
        another trigger, and starts there.
    :param poke_interval: seconds between two polls, 120 by default.
    :param aws_conn_id: the AWS connection.
    :raises HealthExConfigurationError: for an argument that can't be used.
    """

    argument_names = ("bucket_name", "bucket_key", "quiet_period", "since", "poke_interval", "aws_conn_id")
    source_class = S3Source

    def __init__(
        self,
        bucket_name: str,
        bucket_key: str,
        quiet_period: float = 300,
        since: str | datetime | None = None,
        poke_interval: float = 120,
        aws_conn_id: str | None = "aws_default",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if isinstance(bucket_key, str) and "://" in bucket_key:
            raise HealthExConfigurationError(
                f"bucket_key must be a path in the bucket (got the URL {bucket_key!r}): give the bucket as "
                "bucket_name, and what follows it as bucket_key."
            )
        if aws_conn_id is not None and not isinstance(aws_conn_id, str):
            raise HealthExConfigurationError(
                f"aws_conn_id must be a connection's id or None (got a {type(aws_conn_id).__name__})"
            )
        self.bucket_name = check_bucket_name(bucket_name)
        self.bucket_key = bucket_key
        self.aws_conn_id = aws_conn_id
        self._prepare(bucket_key, quiet_period, since, poke_interval)

    def _open(self) -> AsyncBucket:
        return AsyncBucket(self.bucket_name, AwsAccess(self.aws_conn_id), TRIGGERER)

    def _place(self) -> tuple[str, ...]:
        return (self.bucket_name,)
