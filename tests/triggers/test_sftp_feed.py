"""The feed of an SFTP server for an asset watcher: against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from datetime import timedelta
from typing import Any

import pytest
from helpers.support import utc_now

pytest.importorskip("airflow.providers.sftp")

from helpers.openssh import OpenSsh

from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.triggers import feed as module
from airflow_provider_healthex.triggers.sftp import HealthExSftpDeliveryTrigger

PATH = "d/{projectId}/{healthexPatientId}/"
HOUR = 3600


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(module, "HANDOVER", 0.05)


@pytest.fixture
def d(sftp: OpenSsh) -> OpenSsh:
    (sftp.served / "d").mkdir()
    return sftp


def trigger(**arguments: Any) -> HealthExSftpDeliveryTrigger:
    return HealthExSftpDeliveryTrigger(**{"path": PATH, "quiet_period": 0, "poke_interval": 0.2, **arguments})


def events(watching: HealthExSftpDeliveryTrigger, count: int, during: Any = None) -> list[list[dict[str, Any]]]:
    """Return the deliveries of the first events; ``during`` happens once the trigger polls."""
    module_, _, name = watching.serialize()[0].rpartition(".")
    assert (module_, name) == (HealthExSftpDeliveryTrigger.__module__, "HealthExSftpDeliveryTrigger")
    again = HealthExSftpDeliveryTrigger(**json.loads(json.dumps(watching.serialize()[1])))

    async def watch() -> list[list[dict[str, Any]]]:
        found = []
        async with contextlib.aclosing(again.run()) as running:
            task = asyncio.create_task(after(1)) if during else None
            async for event in running:
                found.append(event.payload["deliveries"])
                if len(found) == count:
                    break
            if task:
                await task
        return found

    async def after(seconds: float) -> None:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(during)

    return asyncio.run(asyncio.wait_for(watch(), 30))


@pytest.mark.parametrize("off", [0, -5 * HOUR, 9 * HOUR])
def test_what_is_delivered_after_the_start_is_announced_once_whatever_the_servers_clock(d: OpenSsh, off):
    d.put("d/p/stale/bundle.json", modified=time.time() + off - 60)

    def deliver() -> None:
        d.put("d/p/fresh/1.json", modified=time.time() + off)
        d.put("d/p/fresh/2.json", modified=time.time() + off)

    ((delivery,),) = events(trigger(quiet_period=1), 1, during=deliver)
    assert (delivery["project_id"], delivery["patient_id"], delivery["object_count"]) == ("p", "fresh", 2)


def test_with_since_what_was_there_is_announced(d: OpenSsh):
    d.put("d/p/early/1.json", modified=time.time() - 2 * HOUR)
    d.put("d/p/late/1.json", modified=time.time() - 60)
    since = utc_now() - timedelta(hours=1)
    ((delivery,),) = events(trigger(since=since), 1)
    assert delivery["patient_id"] == "late"


def test_a_half_written_file_is_not_announced(d: OpenSsh):
    since = utc_now() - timedelta(hours=1)
    d.put("d/p/growing/1.json.filepart", modified=time.time() - 60)
    d.put("d/p/whole/1.json", modified=time.time() - 60)
    ((delivery,),) = events(trigger(since=since), 1)
    assert delivery["patient_id"] == "whole"


def test_a_delivery_that_still_changes_is_not_announced(d: OpenSsh):
    def grow() -> None:
        for number in range(4):
            d.put(f"d/p/a/{number}.json")
            time.sleep(0.5)

    ((delivery,),) = events(trigger(quiet_period=3), 1, during=grow)
    assert delivery["object_count"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "d/{projectId}/"}, "doesn't name the patient"),
        ({"path": "d/{projectId}-{healthexPatientId}/"}, "between two variables"),
        ({"path": "sftp://host/d/{healthexPatientId}/"}, "path on the server"),
        ({"path": None}, "give the key"),
        ({"sftp_conn_id": None}, "sftp_conn_id"),
        ({"since": "2026-11-22T17:40:05"}, "time zone"),
        ({"quiet_period": -1}, "quiet_period"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_at_construction(arguments, message):
    with pytest.raises(HealthExConfigurationError, match=message):
        trigger(**arguments)
