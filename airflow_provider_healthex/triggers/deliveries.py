"""Telling an ``AssetWatcher`` of deliveries, whoever asked for them: patients also share by themselves."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from airflow.providers.common.compat.triggers import BaseEventTrigger
from airflow.triggers.base import TriggerEvent

from airflow_provider_healthex.arguments import at_least, baseline
from airflow_provider_healthex.delivery.arrival import Waiting
from airflow_provider_healthex.delivery.feed import MAX_DELIVERIES, Announced, Delivery, Feed
from airflow_provider_healthex.delivery.listing import utc_now
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError
from airflow_provider_healthex.s3 import TRIGGERER, AsyncBucket, AwsAccess, check_bucket_name

#: Seconds that Airflow gets to store an event before it is noted as announced.
HANDOVER = 5

_NAMES = {"projectId": "project_id", "healthexPatientId": "patient_id", "externalId": "external_id", "orgId": "org_id"}


class HealthExDeliveryTrigger(BaseEventTrigger):
    """
    Fires for deliveries in S3 that have paused, for an ``AssetWatcher``; on Airflow 3.

    At most one event a poll, ``{"deliveries": [{"project_id", "patient_id", "external_id", "object_count",
    "last_modified"}…]}``: of the ids those the path has, and at most 1,000 deliveries, the rest in the next event.
    A patient is in it when their newest object since they were last in one is ``quiet_period`` seconds old by S3's
    clock. Each poll lists everything under the path's part before its first variable: S3 can't be asked for what is
    new, so give an expiring or dated prefix where there are millions.

    What has been announced is kept in the asset's state store on Airflow 3.3 and newer, and a restarted triggerer goes
    on there. It is noted a moment after the event, so that a triggerer killed in between repeats an event rather than
    losing it: make what it schedules safe to repeat, by ``patient_id`` and ``last_modified``. Below 3.3, and where two
    assets share one trigger, nothing is kept: each start begins with ``since``, or with its own time.

    It never ends: Airflow starts an event trigger that has ended, or failed, again within a second, for ever. So it
    logs what S3 refuses, as an error, and asks again at the next poll, until somebody has mended it.

    :param bucket_name: the bucket: its name, or an access point's alias or ARN.
    :param bucket_key: where HealthEx delivers, in the bucket: a path that ends in ``/``, or one key a patient, with
        ``{healthexPatientId}`` or ``{externalId}``. Separate variables by ``/``: ids may contain any other sign. No
        globs.
    :param quiet_period: seconds since a patient's newest object.
    :param since: the start, an ISO string or a datetime, with a time zone: earlier objects are ignored. Without one,
        the trigger's first start. Where a state is kept, it is of the first start alone; another ``since`` makes it
        another trigger, and starts there.
    :param poke_interval: seconds between two looks.
    :param aws_conn_id: the AWS connection.
    :raises HealthExConfigurationError: for an argument that can't be used.
    """

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
        self.bucket_name = check_bucket_name(bucket_name)
        self.bucket_key = _path(bucket_key)
        self.quiet_period = at_least("quiet_period", quiet_period, 0, " seconds")
        self.since = since.isoformat() if isinstance(since, datetime) else since
        self.poke_interval = at_least("poke_interval", poke_interval, 0, " seconds")
        self.aws_conn_id = _connection_id(aws_conn_id)
        self._feed = Feed(bucket_key, self.quiet_period)
        self._since = None if self.since is None else baseline("since", self.since)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the arguments: Airflow tells triggers apart by them, so they are those that were given."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "bucket_name": self.bucket_name,
                "bucket_key": self.bucket_key,
                "quiet_period": self.quiet_period,
                "since": self.since,
                "poke_interval": self.poke_interval,
                "aws_conn_id": self.aws_conn_id,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look again and again."""
        memory = _Memory(getattr(self, "asset_state_store", None), self._state_key())
        announced = await self._recall(memory)
        async with AsyncBucket(self.bucket_name, AwsAccess(self.aws_conn_id), TRIGGERER) as bucket:
            while True:
                deliveries, announced = await self._look(bucket, announced)
                pause = self.poke_interval
                if deliveries:
                    yield TriggerEvent({"deliveries": [_told(delivery) for delivery in deliveries]})
                    # Airflow takes events out of this process about every second. Noted now, it could be lost.
                    await asyncio.sleep(min(HANDOVER, pause))
                    await self._note(memory, announced)
                    pause = 0 if len(deliveries) == MAX_DELIVERIES else pause - min(HANDOVER, pause)
                await asyncio.sleep(pause)

    async def _look(self, bucket: AsyncBucket, announced: Announced) -> tuple[list[Delivery], Announced]:
        try:
            found = await bucket.look(self._feed.look(announced))
        except Exception as error:
            # Only texts of this package are known to have no key, and so no id.
            text = str(error) if isinstance(error, HealthExError) else type(error).__name__
            self.log.error("%s The deliveries are not listed; retrying in %g s", text, self.poke_interval)
            return [], announced
        if isinstance(found, Waiting):
            self.log.warning("%s, in %g s", found.reason, self.poke_interval)
            return [], announced
        self.log.info("%d deliveries have settled under %s", len(found[0]), self.bucket_key)
        return found

    async def _recall(self, memory: _Memory) -> Announced:
        """Return what was announced before this process; without it, deliveries would be missed or repeated."""
        start: datetime = self._since or utc_now()
        while True:
            try:
                announced = Announced.from_dict(await memory.get())
                if announced is None:
                    announced = Announced.since(start)
                    await memory.set(announced)
                return announced
            except ValueError as error:
                self.log.warning("What has been announced can't be kept, and a restart will begin anew: %s", error)
                return Announced.since(start)
            except Exception as error:
                self.log.error("The asset's state can't be read, asking again in %g s: %s", self.poke_interval, error)
                await asyncio.sleep(self.poke_interval)

    async def _note(self, memory: _Memory, announced: Announced) -> None:
        try:
            await memory.set(announced)
        except Exception as error:
            self.log.warning("What has been announced can't be noted, and a restart will repeat it: %s", error)

    def _state_key(self) -> str:
        """Return a key of its own: an asset may have several watchers."""
        mine = "\0".join((self.bucket_name, self.bucket_key, self.since or ""))
        return f"healthex-deliveries-{hashlib.sha256(mine.encode()).hexdigest()[:16]}"


class _Memory:
    """Where what has been announced is kept: the asset's state store, or nowhere."""

    def __init__(self, store: Any, key: str) -> None:
        self._store, self._key = store, key

    async def get(self) -> Any:
        return None if self._store is None else await self._store.aget(self._key)

    async def set(self, announced: Announced) -> None:
        if self._store is not None:
            await self._store.aset(self._key, announced.to_dict())


def _path(bucket_key: str) -> str:
    if isinstance(bucket_key, str) and "://" in bucket_key:
        raise HealthExConfigurationError(
            f"bucket_key must be a path in the bucket (got the URL {bucket_key!r}): give the bucket as bucket_name, "
            "and what follows it as bucket_key."
        )
    return bucket_key


def _connection_id(aws_conn_id: str | None) -> str | None:
    if aws_conn_id is not None and not isinstance(aws_conn_id, str):
        raise HealthExConfigurationError(
            f"aws_conn_id must be a connection's id or None (got a {type(aws_conn_id).__name__})."
        )
    return aws_conn_id


def _told(delivery: Delivery) -> dict[str, Any]:
    return {
        **{_NAMES[name]: value for name, value in delivery.values.items()},
        "object_count": delivery.object_count,
        "last_modified": delivery.last_modified.isoformat(),
    }
