"""The triggerer's event loop is shared by all its triggers: none of ours may hold it."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from datetime import timedelta

import pytest
from airflow.providers.amazon.aws.hooks import base_aws
from botocore.loaders import JSONFileLoader, Loader
from helpers.support import utc_now

from airflow_provider_healthex.delivery import ArrivalRule, Expectation, Patient
from airflow_provider_healthex.triggers.healthex import HealthExDataArrivalTrigger
from benchmarks.bucket import NAME, ListedBucket

#: Seconds of a processor, which other processes' load doesn't lengthen as it does a clock's.
LONGEST = 0.05


async def heartbeat(longest: list[float]) -> None:
    """Note the longest time that the loop's thread has worked between two beats."""
    while True:
        before = time.thread_time()
        await asyncio.sleep(0.001)
        longest.append(time.thread_time() - before)


def test_a_cohort_of_ten_thousand_does_not_hold_it(monkeypatch):
    now = utc_now()
    patients = tuple(Patient(f"patient-{number:05}", now - timedelta(minutes=1)) for number in range(10_000))
    rule = ArrivalRule(quiet_period=0)
    expectation = Expectation(("d/{healthexPatientId}/",), {}, patients, rule).to_dict()
    beats: list[float] = []

    async def run() -> list:
        beating = asyncio.create_task(heartbeat(beats))
        try:
            trigger = HealthExDataArrivalTrigger(
                bucket_name=NAME,
                expectation=expectation,
                waiting_for="10,000 patients",
                deadline=time.time() + 60,
                poke_interval=0.1,
                aws={"aws_conn_id": "aws_default"},
            )
            return [event.payload async for event in trigger.run()]
        finally:
            beating.cancel()

    with ListedBucket({f"d/{each.patient_id}/{n}": now for each in patients for n in range(2)}) as bucket:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(bucket.connection()))
        (event,) = asyncio.run(run())
    assert event["status"] == "arrived"
    assert len(beats) > 10
    assert max(beats) < LONGEST


def test_a_client_is_made_of_files_that_were_read_elsewhere(monkeypatch):
    monkeypatch.setattr(base_aws, "_loader", Loader())
    readers = set()
    read = JSONFileLoader.load_file

    def load_file(self, path):
        readers.add(threading.current_thread())
        return read(self, path)

    monkeypatch.setattr(JSONFileLoader, "load_file", load_file)
    with ListedBucket({}) as bucket:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(bucket.connection()))
        trigger = HealthExDataArrivalTrigger(
            bucket_name=NAME,
            expectation=Expectation(("d/",), {}, (Patient(None, utc_now()),), ArrivalRule()).to_dict(),
            waiting_for="a patient",
            deadline=time.time(),
            poke_interval=0.1,
            aws={"aws_conn_id": "aws_default"},
        )

        async def run() -> list:
            return [event.payload async for event in trigger.run()]

        (event,) = asyncio.run(run())
    assert event["message"].startswith("no objects under")
    assert readers
    assert threading.main_thread() not in readers


@pytest.fixture
def small_process():
    """Keep pytest's and Airflow's objects out of garbage collections, which hold every thread: they are not ours."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("airflow_database", "small_process")
def test_a_folder_of_twenty_thousand_files_does_not_hold_it(monkeypatch):
    asyncssh = pytest.importorskip("asyncssh")
    from helpers.odd_sftp import OddSftp

    from airflow_provider_healthex.triggers.sftp import HealthExSftpDataArrivalTrigger

    now = utc_now()
    file = asyncssh.SFTPAttrs(permissions=0o100644, size=2, atime=0, mtime=int(now.timestamp()))
    beats: list[float] = []

    async def scandir(files, path):
        for number in range(20_000 if path.endswith(b"patient/") else 0):
            yield asyncssh.SFTPName(f"{number:05}.json".encode(), attrs=file)

    async def run(trigger) -> list:
        beating = asyncio.create_task(heartbeat(beats))
        try:
            return [event.payload async for event in trigger.run()]
        finally:
            beating.cancel()

    patient = Patient("patient", now - timedelta(minutes=1))
    expectation = Expectation(("d/{healthexPatientId}/",), {}, (patient,), ArrivalRule(quiet_period=0)).to_dict()
    with OddSftp(scandir=scandir) as server:
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection())
        trigger = HealthExSftpDataArrivalTrigger(
            sftp_conn_id="sftp_default",
            expectation=expectation,
            waiting_for="a patient",
            deadline=time.time() + 60,
            poke_interval=0.1,
        )
        (event,) = asyncio.run(run(trigger))
    assert event["status"] == "arrived"
    assert max(beats) < LONGEST
