"""Rows are read as botocore reads them, and faster; by clients of our own alone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from aiobotocore.session import get_session
from botocore.exceptions import ClientError
from helpers import s3_faults as s3
from helpers.support import s3_client

from airflow_provider_healthex.storage import s3_rows

FIELDS = ("Key", "LastModified", "Size", "ETag")
MOMENT = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)


@pytest.fixture
def server() -> Iterator[s3.FaultyS3]:
    with s3.FaultyS3() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def with_boto3(url: str) -> dict[str, Any]:
    return s3_rows.read_rows_fast(s3_client(url)).list_objects_v2(Bucket="bucket")


def with_aiobotocore(url: str) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        keys = {"aws_access_key_id": "test-key", "aws_secret_access_key": "s", "region_name": "us-east-1"}
        async with get_session().create_client("s3", endpoint_url=url, **keys) as client:
            return await s3_rows.read_rows_in_thread(client).list_objects_v2(Bucket="bucket")

    return asyncio.run(run())


each_client = pytest.mark.parametrize("listed", [with_boto3, with_aiobotocore])


def changed(answer: s3.Answer, pattern: str, text: str) -> s3.Answer:
    return s3.Answer(re.sub(pattern, text, answer.body))


@each_client
@pytest.mark.parametrize(
    "answer",
    [
        s3.EMPTY,
        s3.listing("d/1"),
        s3.listing("d/1", "d/a b&c+ü.json", "d/%41", "", token="t/1+2="),
        s3.listing("d/", size=0),
        changed(s3.listing("d/1", "d/2"), "<ETag>.*?</ETag>", ""),
        changed(s3.listing("d/1", "d/2"), "<ETag>.*?</ETag>", "<ETag/>"),
        changed(s3.listing("d/1", "d/2"), "<Size>.*?</Size>", ""),
        changed(s3.listing("d/1", "d/2"), "<Key>.*?</Key>", "<Key/>"),
        changed(s3.listing("d/1"), ' xmlns="[^"]*"', ""),
        changed(s3.listing("d/1"), "><", ">\n  <"),
        changed(s3.listing("d/1", "d/2"), "<Contents>.*?</Contents>", "<Contents/>"),
        changed(s3.listing("d/1"), "<Contents>.*</Contents>", "<Contents/>"),
        changed(s3.listing("d/1"), "<Contents>", "<Contents a='b>c'>"),
        changed(s3.listing("d/1"), "<Key>", "<Key>a<Key>b</Key>"),
        changed(s3.listing("d/1"), "</Key>", "</Key><Owner><ID>1</ID><Key>k</Key></Owner>"),
        changed(s3.listing("d/1"), "<Key>d/1</Key>", "<Key>&#100;<!-- a comment -->/<![CDATA[1]]></Key>"),
        changed(s3.listing("d/1"), "<ListBucketResult", "<!DOCTYPE l [<!ENTITY e 'x'>]><ListBucketResult"),
    ],
)
def test_a_page_is_what_botocore_makes_of_it(server, listed: Callable, answer):
    server.script(answer, answer)
    theirs = s3_client(server.endpoint_url).list_objects_v2(Bucket="bucket")
    ours = listed(server.endpoint_url)
    rows = [{name: row[name] for name in FIELDS if name in row} for row in theirs.get("Contents", ())]
    assert [{name: row[name] for name in FIELDS if name in row} for row in ours.get("Contents", ())] == rows
    del theirs["ResponseMetadata"], ours["ResponseMetadata"]
    assert {**ours, "Contents": 0} == {**theirs, "Contents": 0}


@each_client
@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22T17:40:05.000Z", MOMENT),
        ("2026-11-22T17:40:05Z", MOMENT),
        ("2026-11-22T17:40:05.123Z", MOMENT + timedelta(milliseconds=123)),
        ("2026-11-22T17:40:05.123456789Z", MOMENT + timedelta(microseconds=123456)),
        ("2026-11-22T19:40:05+02:00", MOMENT),
        ("20261122T174005Z", MOMENT),
        ("2026-11-22T17:40:05", MOMENT.replace(tzinfo=None)),
        ("Sun, 22 Nov 2026 17:40:05 GMT", MOMENT),
        ("Sunday, 22-Nov-26 17:40:05 GMT", MOMENT),
        (str(int(MOMENT.timestamp())), MOMENT),
        ("1701011512", datetime.fromtimestamp(1701011512, timezone.utc)),
    ],
)
def test_a_time_is_read_in_every_form(server, listed: Callable, text, moment):
    server.script(changed(s3.listing("d/1"), "<LastModified>.*</LastModified>", f"<LastModified>{text}</LastModified>"))
    (row,) = listed(server.endpoint_url)["Contents"]
    assert row["LastModified"] == moment


@each_client
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (s3.GARBAGE, "500"),
        (s3.CUT_XML, "500"),
        (s3.ERROR_WITH_200, "InternalError"),
        (s3.ACCESS_DENIED, "AccessDenied"),
    ],
)
def test_an_error_stays_botocores(server, listed: Callable, answer, error):
    server.script(answer)
    with pytest.raises(ClientError, match=error):
        listed(server.endpoint_url)


@each_client
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_a_row_has_twice_is_none_of_them(server, listed: Callable, field):
    """Which of two keys would be the object's? botocore hands over both, and a listing refuses that."""
    server.script(
        changed(s3.listing("d/1"), f"<{field}>(.*)</{field}>", rf"<{field}>\1</{field}><{field}>\1</{field}>")
    )
    try:
        (row,) = listed(server.endpoint_url)["Contents"]
    except (TypeError, ValueError):  # botocore's own, of two times or sizes
        return
    assert isinstance(row[field], list)


@each_client
@pytest.mark.parametrize("field", ["Size", "LastModified"])
def test_a_field_that_can_not_be_read_is_botocores_error(server, listed: Callable, field):
    server.script(changed(s3.listing("d/1"), f"<{field}>.*</{field}>", f"<{field}>soon</{field}>"))
    with pytest.raises(ValueError, match="soon"):
        listed(server.endpoint_url)


def test_another_client_reads_as_ever(server):
    server.script(s3.listing("d/1"), s3.listing("d/1"))
    with_boto3(server.endpoint_url)
    (row,) = s3_client(server.endpoint_url).list_objects_v2(Bucket="bucket")["Contents"]
    assert "StorageClass" in row


def test_only_what_is_left_of_a_page_is_parsed_by_botocore(server, monkeypatch):
    """It would parse the rows twice: for an error in a page, and for the page."""
    server.script(s3.listing("d/1", token="t"))
    client, bodies = s3_rows.read_rows_fast(s3_client(server.endpoint_url)), []
    client.meta.events.register("before-parse.s3.*", lambda response_dict, **_: bodies.append(response_dict["body"]))
    client.meta.events.register_first(
        "before-parse.s3.*", lambda response_dict, **_: bodies.append(response_dict["body"])
    )
    assert client.list_objects_v2(Bucket="bucket")["NextContinuationToken"] == "t"
    assert len(bodies) == 2
    assert all(b"d/1" not in body for body in bodies)
