"""The feed of deliveries for an ``AssetWatcher``, requested or not: patients also share by themselves."""

from __future__ import annotations

import asyncio
import hashlib
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, ClassVar, TypeVar, cast

from airflow.providers.common.compat.triggers import BaseEventTrigger
from airflow.triggers.base import TriggerEvent

from airflow_provider_healthex.arguments import at_least, requested_at
from airflow_provider_healthex.delivery.feed import MAX_DELIVERIES, Announced, Delivery, Feed, Source
from airflow_provider_healthex.delivery.plan import Plan, Waiting
from airflow_provider_healthex.exceptions import HealthExError
from airflow_provider_healthex.moments import utc_now

T = TypeVar("T")

#: Seconds that Airflow gets to store an event before it is stored as announced.
HANDOVER = 5

_NAMES = {"projectId": "project_id", "healthexPatientId": "patient_id", "externalId": "external_id", "orgId": "org_id"}


class DeliveryTrigger(BaseEventTrigger):
    """
    Fires for deliveries that have settled, for an ``AssetWatcher``; on Airflow 3.

    At most one event a poll, ``{"deliveries": [{"project_id", "patient_id", "external_id", "object_count",
    "last_modified"}…]}``: of the ids those the path has, and at most 1,000 deliveries, the rest in the next event.

    Each poll lists everything under the path's part before its first variable, several requests at a time: for a
    million objects in S3 1,000 requests, $0.005 at list price. Let old deliveries expire, or use S3's notifications
    and ``SqsSensorTrigger``, where there are millions.

    The announced deliveries are kept in the asset's state store on Airflow 3.3 and newer: a restarted triggerer goes
    on there. It is stored a moment after the event, so that a triggerer killed in between repeats an event rather than
    losing it: make what it schedules safe to repeat, by ``patient_id`` and ``last_modified``. Below 3.3, and where two
    assets share one trigger, nothing is kept: each start begins with ``since``, or with its own time.

    It never ends: Airflow starts an event trigger that has ended, or failed, again within a second, without end. So it
    logs an error, also a permanent one, and retries at the next poll.
    """

    #: The arguments, in order: Airflow identifies a trigger by them.
    argument_names: ClassVar[tuple[str, ...]]
    source_class: ClassVar[type[Source]]

    def _prepare(self, path: str, quiet_period: float, since: str | datetime | None, poke_interval: float) -> None:
        self.quiet_period = at_least("quiet_period", quiet_period, 0, " s")
        self.since = since.isoformat() if isinstance(since, datetime) else since
        self.poke_interval = at_least("poke_interval", poke_interval, 0, " s")
        self._path = path
        self._feed = Feed(path, self.quiet_period)
        self._since = None if self.since is None else requested_at("since", self.since)

    @abstractmethod
    def _open(self) -> AbstractAsyncContextManager[Any]:
        """Return the storage, whose ``run`` is asynchronous."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the arguments as they were given."""
        arguments = {name: getattr(self, name) for name in self.argument_names}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll again and again."""
        memory = _Memory(getattr(self, "asset_state_store", None), self._state_key())
        source = self.source_class()
        async with self._open() as storage:
            announced = await self._recall(memory, storage, source)
            while True:
                deliveries, announced = await self._poll(storage, source, announced)
                pause = self.poke_interval
                if deliveries:
                    yield TriggerEvent({"deliveries": [_to_dict(delivery) for delivery in deliveries]})
                    # Airflow takes events out of this process about every second. Stored now, it could be lost.
                    await asyncio.sleep(min(HANDOVER, pause))
                    await self._note(memory, announced)
                    pause = 0 if len(deliveries) == MAX_DELIVERIES else pause - min(HANDOVER, pause)
                await asyncio.sleep(pause)

    async def _poll(self, storage: Any, source: Source, announced: Announced) -> tuple[list[Delivery], Announced]:
        found = await self._list(storage, self._feed.poke(announced, source))
        if found is None:
            return [], announced
        self.log.info("%d deliveries have settled under %s", len(found[0]), self._path)
        return found

    async def _list(self, storage: Any, plan: Plan[T]) -> T | None:
        """Make a plan's requests; None after an error, which is logged."""
        try:
            found = await storage.run(plan)
        except Exception as error:
            # Only texts of this package are known to have no key, and so no id.
            text = str(error) if isinstance(error, HealthExError) else type(error).__name__
            self.log.error("%s The deliveries are not listed; retrying in %g s", text, self.poke_interval)
            return None
        if isinstance(found, Waiting):
            self.log.warning("%s, in %g s", found.reason, self.poke_interval)
            return None
        return cast("T", found)

    async def _start(self, storage: Any, source: Source) -> Announced:
        """Return what counts as announced at the first start."""
        return Announced.since(self._since or utc_now())

    async def _recall(self, memory: _Memory, storage: Any, source: Source) -> Announced:
        """Return what was announced before this process; without it, deliveries would be missed or repeated."""
        start: Announced | None = None
        while True:
            try:
                announced = Announced.from_dict(await memory.get())
                if announced is not None:
                    return announced
                start = start or await self._start(storage, source)
                await memory.set(start)
                return start
            except ValueError as error:
                self.log.warning("What has been announced can't be kept, and a restart will begin anew: %s", error)
                return start or await self._start(storage, source)
            except Exception as error:
                self.log.error("The asset's state can't be read; retrying in %g s: %s", self.poke_interval, error)
                await asyncio.sleep(self.poke_interval)

    async def _note(self, memory: _Memory, announced: Announced) -> None:
        try:
            await memory.set(announced)
        except Exception as error:
            self.log.warning("What has been announced can't be stored, and a restart will repeat it: %s", error)

    @abstractmethod
    def _place(self) -> tuple[str, ...]:
        """Return what identifies this storage."""

    def _state_key(self) -> str:
        """Return a key of its own: an asset may have several watchers."""
        mine = "\0".join((*self._place(), self._path, self.since or ""))
        return f"healthex-deliveries-{hashlib.sha256(mine.encode()).hexdigest()[:16]}"


class _Memory:
    """The store of the announced deliveries: the asset's state store, or none."""

    def __init__(self, store: Any, key: str) -> None:
        self._store, self._key = store, key

    async def get(self) -> Any:
        return None if self._store is None else await self._store.aget(self._key)

    async def set(self, announced: Announced) -> None:
        if self._store is not None:
            await self._store.aset(self._key, announced.to_dict())


def _to_dict(delivery: Delivery) -> dict[str, Any]:
    return {
        **{_NAMES[name]: value for name, value in delivery.values.items()},
        "object_count": delivery.object_count,
        "last_modified": delivery.last_modified.isoformat(),
    }
