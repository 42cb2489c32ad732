from __future__ import annotations

import json
from datetime import datetime, timezone
from xml.etree import ElementTree

import pytest
from airflow import __version__ as airflow_version

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.s3 import s3_client
from benchmarks import __main__ as command
from benchmarks import deciding, feed, imports, refresh, sftp, updating, waiting
from benchmarks.airflow import Refresh
from benchmarks.bucket import CREDENTIALS, NAME, ListedBucket
from benchmarks.memory import Peaks
from benchmarks.refresh import accepted
from benchmarks.report import Report, as_markdown, as_text, machine, page
from testing import Unavailable

HAS_STATE_STORE = tuple(int(part) for part in airflow_version.split(".")[:2]) >= (3, 3)

MOMENT = datetime(2026, 11, 22, tzinfo=timezone.utc)
KEYS = [f"d/p/patient-{number // 3:02}/ä b&{number % 3}.json" for number in range(30)]


@pytest.fixture(scope="module")
def bucket():
    with ListedBucket(dict.fromkeys(KEYS, MOMENT)) as listed:
        yield listed


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"Prefix": "d/p/patient-03/"},
        {"Prefix": "d/p/patient-0", "MaxKeys": 7},
        {"Prefix": "d/p/", "StartAfter": "d/p/patient-08/ä b&1.json", "MaxKeys": 2},
        {"Prefix": "d/p/patient-03/", "StartAfter": "d/p/patient-02/zzz"},
        {"Prefix": "d/p/patient-03/", "StartAfter": "d/p/patient-04"},
        {"Prefix": "elsewhere/"},
    ],
)
def test_the_listed_bucket_lists_as_moto_does(bucket, request_):
    mine = s3_client(bucket.url, CREDENTIALS)
    with Sandbox(earlier_deliveries=False) as sandbox:
        motos = sandbox.s3_client()
        for key in KEYS:
            motos.put_object(Bucket=sandbox.bucket, Key=key, Body=b"")
        for client, name in ((motos, sandbox.bucket), (mine, NAME)):
            answer = client.list_objects_v2(Bucket=name, **request_)
            shown = (answer["KeyCount"], answer["IsTruncated"], [row["Key"] for row in answer.get("Contents", ())])
            pages = list(client.get_paginator("list_objects_v2").paginate(Bucket=name, **request_))
            everything = [row["Key"] for each in pages for row in each.get("Contents", ())]
            if client is motos:
                expected = shown, everything
    assert (shown, everything) == expected


def test_the_listed_bucket_counts_and_forgets_no_change(bucket):
    client, before = s3_client(bucket.url, CREDENTIALS), bucket.requests
    bucket.modify(KEYS[:1], MOMENT.replace(year=2027))
    rows = client.list_objects_v2(Bucket=NAME, MaxKeys=2)["Contents"]
    assert [row["LastModified"].year for row in rows] == [2027, 2026]
    assert bucket.requests == before + 1
    assert bucket.rows >= 2


@pytest.mark.skipif(not HAS_STATE_STORE, reason="it compares with a state store, which Airflow has since 3.3")
def test_updating_runs():
    report = updating.run(patients=24, latency=0.01)
    assert [row[0] for row in report.rows][:2] == ["requests.Session, in a loop", "hook, max_concurrency=1"]
    assert any(row[0].startswith("operator, durable") for row in report.rows)


def test_waiting_runs_and_draws_a_chart():
    report = waiting.run(patients=20, missing=(20, 5, 1), buckets=((30, 0.0), (30, 0.001)))
    assert [row[1] for row in report.rows] == 2 * ["", "20", "5", "1"]
    assert all(int(row[3]) <= int(row[1] or 20) for row in report.rows), "more LISTs than key sensors"
    drawn = ElementTree.fromstring(report.chart)
    assert len(drawn.findall(".//{*}polyline")) == 2 * 3
    assert len(drawn.findall(".//{*}circle")) == 2 * 3 * 3


def test_deciding_runs():
    report = deciding.run(objects=3000, rounds=1)
    assert len(report.rows) == 5


def test_feed_runs_and_every_poll_finds_the_deliveries():
    report = feed.run([(9_000, 0.0), (300, 0.01)])
    assert [row[1] for row in report.rows] == ["9", "9", "9", "1", "1", "1"]


@pytest.mark.skipif(sftp.SSHD is None, reason="it needs OpenSSH's server")
def test_sftp_runs_over_one_connection(monkeypatch):
    monkeypatch.setattr(sftp, "SAMPLE", 1)
    report = sftp.run(patients=4)
    assert [row[:2] for row in report.rows] == [("SFTPSensor", "44"), ("SFTPHook", "4"), ("ours", "1")]


def test_refresh_reports_ours_over_the_floor_and_over_the_mapped_variant():
    def took(seconds: float) -> Refresh:
        return Refresh(2, seconds, 0, Peaks())

    report = refresh._report((200, 1000), took(5), (took(11), took(20)), (took(330), took(1000)))
    assert report.ratio == (
        "200 patients: 1/30 of the mapped variant's overhead, 1.1 x Airflow's own; "
        "1,000 patients: 1/50 of the mapped variant's overhead, 2.0 x Airflow's own"
    )
    assert report.met
    assert len(report.rows) == 5


def test_imports_runs():
    assert imports.run(rounds=1).ratio.endswith("x the import of S3KeySensor's module")


def test_whoever_is_refreshed_is_accepted():
    assert len(accepted(200)) == 200


REPORT = Report(
    "name", "What is it?", "2 x", ("what", "s"), [("theirs", "2.0"), ("ours", "1.0")], "3 x", False, ("So.",)
)


def test_a_report_is_shown_ratio_first():
    assert as_text(REPORT).startswith("name: 2 x   (target: 3 x: MISSED)\n")
    assert "| theirs | 2.0 |" in as_markdown(REPORT)
    assert page([REPORT]).endswith("- So.\n")


def test_the_machine_is_described_without_its_name():
    import platform

    assert "cores" in machine()
    assert platform.node() not in machine()


def test_a_missed_target_is_an_exit_code_and_what_is_not_installed_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(imports, "run", lambda: REPORT)
    assert command.main(["imports", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["reports"][0]["name"] == "name"

    def unavailable() -> Report:
        raise Unavailable("it needs PostgreSQL")

    monkeypatch.setattr(imports, "run", unavailable)
    assert command.main(["imports"]) == 0
    assert "imports is left out: it needs PostgreSQL" in capsys.readouterr().err
