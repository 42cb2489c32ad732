"""The trigger of an asset watcher: against a real S3 server, and a store as Airflow 3.3 gives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import date, datetime, timedelta

import pytest
from helpers import s3_faults as s3
from helpers.support import aws_connection, utc_now

from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.triggers import feed as module
from airflow_provider_healthex.triggers.healthex import HealthExDeliveryTrigger

PATH = "d/{projectId}/{externalId}/"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(module, "HANDOVER", 0.05)


class Store:
    """The asset's state, as Airflow's accessor offers it; no server gives one without a triggerer."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.failures: list[Exception] = []

    async def aget(self, key, default=None):
        if self.failures:
            raise self.failures.pop()
        return json.loads(self.values[key]) if key in self.values else default

    async def aset(self, key, value):
        if self.failures:
            raise self.failures.pop()
        self.values[key] = json.dumps(value)


def trigger(bucket_name: str, store: Store | None = None, **changes) -> HealthExDeliveryTrigger:
    given = {"bucket_name": bucket_name, "bucket_key": PATH, "quiet_period": 0, "poke_interval": 0.1, **changes}
    _, kwargs = HealthExDeliveryTrigger(**given).serialize()
    again = HealthExDeliveryTrigger(**json.loads(json.dumps(kwargs)))
    if store is not None:
        again.asset_state_store = store
    return again


def run(one: HealthExDeliveryTrigger, wanted: int, seconds: float = 1.5) -> list:
    """Run a trigger until it has told of so many deliveries and then some, as a triggerer that is then stopped."""
    events = []

    async def consume() -> None:
        async for event in one.run():
            events.extend(json.loads(json.dumps(event.payload))["deliveries"])

    async def for_a_while() -> None:
        task = asyncio.create_task(consume())
        for _ in range(1_500):
            if wanted and len(events) >= wanted:
                break
            await asyncio.sleep(0.01 if wanted else seconds / 1_500)
        await asyncio.sleep(0.5)
        assert not task.done(), "it ended"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(for_a_while())
    return events


def just_now() -> str:
    return utc_now().isoformat()


def test_it_tells_what_the_path_tells(bucket):
    since = just_now()
    stamp = bucket.put("d/project-1/mrn-1/a.json")
    stamp = max(stamp, bucket.put("d/project-1/mrn-1/b.json"))
    bucket.put("d/other.json")
    assert run(trigger(bucket.name, since=since), 1) == [
        {"project_id": "project-1", "external_id": "mrn-1", "object_count": 2, "last_modified": stamp.isoformat()}
    ]


def test_a_restarted_triggerer_neither_repeats_nor_misses(bucket):
    store, since = Store(), just_now()
    bucket.put("d/project-1/mrn-1/a.json")
    first = run(trigger(bucket.name, store, since=since), 1)
    bucket.put("d/project-1/mrn-2/a.json")  # while there is no triggerer
    second = run(trigger(bucket.name, store, since=since), 1)
    assert [one["external_id"] for one in first + second] == ["mrn-1", "mrn-2"]
    assert "mrn" not in json.dumps(store.values)


def test_without_a_start_it_is_the_first_triggers_which_is_kept(bucket):
    store = Store()
    run(trigger(bucket.name, store), 0)
    bucket.put("d/project-1/mrn-1/a.json")
    assert len(run(trigger(bucket.name, store), 1)) == 1


def test_two_watchers_of_an_asset_keep_apart(bucket):
    store = Store()
    for path in (PATH, "e/{healthexPatientId}/"):
        run(trigger(bucket.name, store, bucket_key=path), 0)
    assert len(store.values) == 2


def test_without_a_store_it_starts_at_since_again(bucket):
    since = just_now()
    bucket.put("d/project-1/mrn-1/a.json")
    assert len(run(trigger(bucket.name, since=since), 1)) == 1
    assert len(run(trigger(bucket.name, since=since), 1)) == 1
    assert run(trigger(bucket.name, since="2100-01-01T00:00:00Z"), 0) == []


def test_a_store_that_is_away_is_waited_for(bucket):
    store, since = Store(), just_now()
    bucket.put("d/project-1/mrn-1/a.json")
    store.failures = [ConnectionError("away"), ConnectionError("away")]
    assert len(run(trigger(bucket.name, store, since=since), 1)) == 1
    assert len(store.values) == 1


def test_an_asset_that_shares_the_trigger_leaves_nothing_to_keep_it_in(bucket, task_log):
    store, since = Store(), just_now()
    bucket.put("d/project-1/mrn-1/a.json")
    store.failures = [ValueError("2 concrete inlets and outlets")] * 9
    assert len(run(trigger(bucket.name, store, since=since), 1)) == 1
    assert "can't be kept" in task_log()


@pytest.mark.parametrize("answer", [s3.SLOW_DOWN, s3.RESET, s3.ACCESS_DENIED, s3.NO_SUCH_BUCKET, s3.GARBAGE], ids=str)
def test_trouble_is_logged_and_never_ends_it(monkeypatch, answer):
    with s3.FaultyS3() as server:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(server.endpoint_url))
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        server.script(answer, answer, s3.listing("d/project-1/mrn-1/a.json"))
        since = just_now()
        assert len(run(trigger("bucket", since=since), 1)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bucket_key": "d/{projectId}/"}, "doesn't name the patient"),
        ({"bucket_key": "d/{patient}/"}, "not one of its variables"),
        ({"since": "yesterday"}, "ISO 8601"),
        ({"since": "2026-11-22T17:40:05"}, "time zone"),
        ({"bucket_key": "s3://bucket/d/{healthexPatientId}/"}, "must be a path in the bucket"),
        ({"bucket_key": "d/{projectId}-{healthexPatientId}/"}, "Separate variables by '/'"),
        ({"bucket_key": "d/*/{healthexPatientId}/"}, "knows no globs"),
        ({"bucket_key": None}, "give the key, the prefix"),
        ({"bucket_key": ["d/{healthexPatientId}/"]}, "give the key, the prefix"),
        ({"bucket_name": None}, "bucket_name must be .*got a NoneType"),
        ({"bucket_name": ""}, "bucket_name must be"),
        ({"bucket_name": "s3://bucket"}, "bucket_name must be"),
        ({"bucket_name": "bucket/d"}, "bucket_name must be"),
        ({"bucket_name": "arn:aws:s3:::bucket"}, "bucket_name must be"),
        ({"since": datetime(2026, 11, 22)}, "time zone"),
        ({"since": date(2026, 11, 22)}, "got a date"),
        ({"since": 1_700_000_000}, "got a int"),
        ({"since": ""}, "ISO 8601"),
        ({"poke_interval": timedelta(seconds=5)}, "poke_interval"),
        ({"poke_interval": None}, "poke_interval"),
        ({"quiet_period": True}, "quiet_period"),
        ({"aws_conn_id": 7}, "aws_conn_id must be"),
        ({"quiet_period": -1}, "quiet_period"),
        ({"poke_interval": "often"}, "poke_interval"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_when_the_dag_is_parsed(arguments, message):
    with pytest.raises(HealthExConfigurationError, match=message):
        trigger(**{"bucket_name": "bucket", **arguments})


def test_a_datetime_is_a_start_too(bucket):
    since = utc_now().replace(microsecond=0)
    bucket.put("d/project-1/mrn-1/a.json")
    given = trigger(bucket.name, since=since)
    assert given.serialize()[1]["since"] == since.isoformat()
    assert len(run(given, 1)) == 1


@pytest.mark.parametrize("name", ["arn:aws:s3:us-east-1:123456789012:accesspoint/name", "name-abc123-s3alias"])
def test_an_access_point_is_a_bucket(name):
    assert trigger(name).bucket_name == name


def test_what_is_logged_names_no_id(monkeypatch, task_log, certificate):
    with s3.FaultyS3(certificate) as server:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(server.endpoint_url))
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        assert run(trigger("bucket", bucket_key="of-one-org/{externalId}/"), 0, seconds=1) == []
    log = task_log()
    assert "SSLError on the triggerer" in log or "CertificateError on the triggerer" in log
    assert "prefix=" not in log


@pytest.mark.parametrize("stuck", [s3.HALF_A_CHUNK, s3.WRONG_CHUNKS, s3.DRIPPING, s3.SILENCE], ids=str)
def test_an_answer_that_does_not_end_is_given_up(monkeypatch, task_log, stuck):
    monkeypatch.setattr("airflow_provider_healthex.storage.s3.REQUEST_LIMIT", 0.7)
    with s3.FaultyS3() as server:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(server.endpoint_url))
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        since = just_now()
        server.script(stuck, s3.listing("d/project-1/mrn-1/a.json"))
        assert len(run(trigger("bucket", since=since), 1)) == 1
    assert "S3 did not answer the triggerer" in task_log()


def test_airflow_tells_it_by_its_arguments():
    try:
        from airflow.triggers.base import BaseEventTrigger
    except ImportError:
        pytest.skip("Airflow 2 has no event triggers")
    same, other = trigger("bucket"), trigger("bucket", bucket_key="e/{healthexPatientId}/")
    assert BaseEventTrigger.hash(*same.serialize()) == BaseEventTrigger.hash(*trigger("bucket").serialize())
    assert BaseEventTrigger.hash(*same.serialize()) != BaseEventTrigger.hash(*other.serialize())


def test_an_asset_watcher_takes_it():
    watchers = pytest.importorskip("airflow.sdk", reason="Airflow 2 has no asset watchers")
    asset = watchers.Asset("deliveries", watchers=[watchers.AssetWatcher(name="s3", trigger=trigger("bucket"))])
    assert asset.watchers[0].trigger.serialize()[0].endswith("HealthExDeliveryTrigger")
