"""Listing S3 and writing to it: transient errors are waited for, permanent ones name what failed; by both clients."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from helpers import s3_faults as s3
from helpers.stores import Poked
from helpers.support import aws_connection, s3_client

from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError
from airflow_provider_healthex.storage import s3 as module
from airflow_provider_healthex.storage.s3 import TRIGGERER, WORKER, AsyncBucket, AwsAccess, Bucket

SECRET = "secret-of-the-test"
EXTERNAL_ID = "external-7"
ACCESS = AwsAccess(
    "deliveries",
    region_name="us-east-1",
    # botocore would retry transient errors by itself, and hide what we make of them.
    botocore_config={"retries": {"total_max_attempts": 1}, "connect_timeout": 2, "read_timeout": 2},
)
IMPATIENT = replace(ACCESS, botocore_config={**ACCESS.botocore_config, "read_timeout": 0.2})
LONG_AGO = datetime(2000, 1, 1, tzinfo=timezone.utc)

TRANSIENT = {
    "SlowDown": s3.SLOW_DOWN,
    "InternalError": s3.INTERNAL_ERROR,
    "ServiceUnavailable": s3.SERVICE_UNAVAILABLE,
    "RequestTimeout": s3.REQUEST_TIMEOUT,
    "ExpiredToken": s3.EXPIRED_TOKEN,
    "429": s3.TOO_MANY_REQUESTS,
    "OperationAborted": s3.CONFLICT,
    "RequestTimeTooSkewed": s3.CLOCK_SKEW,
    "TokenRefreshRequired": s3.TOKEN_REFRESH,
    "SomeNewThrottlingThing": s3.UNKNOWN_THROTTLING,
    "PriorRequestNotComplete": s3.refusal(400, "PriorRequestNotComplete"),
    "408": s3.Answer("", 408),
    "425": s3.Answer("", 425),
    "502": s3.BAD_GATEWAY,
    # botocore makes a 500 of a 200 that is no listing.
    "500 for no XML": s3.GARBAGE,
    "500 for a cut document": s3.CUT_XML,
    "InternalError with status 200": s3.ERROR_WITH_200,
}
PERMANENT = {
    "NoSuchBucket": (s3.NO_SUCH_BUCKET, "create the bucket"),
    "AccessDenied": (s3.ACCESS_DENIED, "grant s3:ListBucket"),
    "InvalidAccessKeyId": (s3.INVALID_ACCESS_KEY, "access key and secret"),
    "SignatureDoesNotMatch": (s3.WRONG_SIGNATURE, "access key and secret"),
    "PermanentRedirect": (s3.WRONG_REGION, "region_name"),
    "AuthorizationHeaderMalformed": (s3.MALFORMED_AUTHORIZATION, "region_name"),
    "InvalidToken": (s3.refusal(400, "InvalidToken"), "renew the session token"),
    "InvalidArgument": (s3.refusal(400, "InvalidArgument"), "see the code in the S3 documentation"),
}


def expected(*paths: str, external_id: str | None = None, quiet_period: float = 0, **rule) -> Expectation:
    patient = Patient(None, LONG_AGO, external_id)
    return Expectation(paths or ("d/",), {}, (patient,), ArrivalRule(quiet_period=quiet_period, **rule))


def one_poke():
    """Plan a poke of a wait of its own."""
    return ArrivalWait(expected(), Bucket.listing).poke()


class OnWorker:
    """A bucket and its pokes, as a worker has them."""

    component = WORKER

    def __init__(self, name: str = "bucket", access: AwsAccess = ACCESS, **kwargs) -> None:
        self.bucket = Bucket(name, access, self.component, **kwargs)

    def run(self, plan):
        return self.bucket.run(plan)

    def poke(self, expectation: Expectation | None = None) -> Poked:
        """Check once, in a wait of its own."""
        wait = ArrivalWait(expectation or expected(), self.bucket.listing)
        objects: dict = {}
        waiting = self.run(wait.poke(lambda index, rows: objects.setdefault(index, []).extend(rows)))
        return Poked(waiting, objects, wait.arrived)

    def close(self) -> None:
        pass


class OnTriggerer(OnWorker):
    """The same as a triggerer has them: on an event loop of its own."""

    component = TRIGGERER

    def __init__(self, name: str = "bucket", access: AwsAccess = ACCESS, **kwargs) -> None:
        self.bucket = AsyncBucket(name, access, self.component, **kwargs)
        self.runner = asyncio.Runner()

    def run(self, plan):
        return self.runner.run(self.bucket.run(plan))

    def close(self) -> None:
        self.runner.run(self.bucket.__aexit__())
        self.runner.close()


@pytest.fixture(params=[OnWorker, OnTriggerer], ids=[WORKER, TRIGGERER])
def opened(request) -> Iterator:
    """Open buckets in one of the two ways."""
    buckets = []

    def open_bucket(*args, **kwargs):
        buckets.append(request.param(*args, **kwargs))
        return buckets[-1]

    yield open_bucket
    for bucket in buckets:
        bucket.close()


def connect(monkeypatch: pytest.MonkeyPatch, endpoint_url: str, name: str = "DELIVERIES") -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{name}", aws_connection(endpoint_url, SECRET))


@pytest.fixture
def faulty(monkeypatch) -> Iterator[s3.FaultyS3]:
    with s3.FaultyS3() as server:
        connect(monkeypatch, server.endpoint_url)
        yield server


@pytest.fixture
def without_credentials(monkeypatch, tmp_path):
    """Take away what boto finds in an environment by itself."""
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    for name in ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_ROLE_ARN"):
        monkeypatch.delenv(name, raising=False)


def every_text(error: BaseException | None) -> str:
    """Return the texts of an error, its causes and its contexts."""
    return f"{error!r} {every_text(error.__cause__)} {every_text(error.__context__)}" if error else ""


def refused(bucket) -> str:
    with pytest.raises(HealthExConfigurationError) as caught:
        bucket.poke()
    assert SECRET not in str(caught.value)
    assert "test-key" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def more_than_a_page(s3_endpoint) -> str:
    """Return a bucket with 1,003 objects."""
    client = s3_client(s3_endpoint)
    client.create_bucket(Bucket="more-than-a-page")
    for number in range(1_003):
        client.put_object(Bucket="more-than-a-page", Key=f"d/{number:05}", Body=b"1")
    return "more-than-a-page"


class TestOnARealServer:
    @pytest.fixture(autouse=True)
    def _connect(self, bucket, monkeypatch):
        connect(monkeypatch, bucket.endpoint_url)

    def test_what_was_put_has_arrived(self, opened, bucket):
        stamp = bucket.put("d/a.json", b"12345")
        bucket.put("x/b.json")
        (row,) = opened(bucket.name).poke().objects[0]
        assert (row.key, row.size, row.last_modified) == ("d/a.json", 5, stamp)

    def test_its_times_are_utcs_wherever_the_machine_is(self, opened, bucket, monkeypatch):
        stamp = bucket.put("d/a.json")
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        try:
            (row,) = opened(bucket.name).poke().objects[0]
        finally:
            monkeypatch.delenv("TZ")
            time.tzset()
        assert row.last_modified == stamp
        assert row.last_modified.isoformat().endswith("+00:00")

    def test_its_clock_is_the_servers(self, opened, bucket):
        bucket.put("d/a.json")
        verdict = opened(bucket.name).poke(expected(quiet_period=3600))
        assert verdict.reason.startswith("1 fresh object, settling: ")

    def test_a_poke_over_more_than_a_page_sees_all(self, opened, more_than_a_page):
        assert len(opened(more_than_a_page).poke().keys) == 1_003

    def test_one_key_is_told_from_a_longer_one(self, opened, bucket):
        bucket.put("d/a.json.part")
        assert opened(bucket.name).poke(expected("d/a.json")).reason == "no objects at d/a.json"
        bucket.put("d/a.json")
        assert opened(bucket.name).poke(expected("d/a.json")).keys == ["d/a.json"]

    def test_one_bucket_is_listed_again_and_again(self, opened, bucket):
        watched = opened(bucket.name)
        assert watched.poke().reason == "no objects under d/"
        bucket.put("d/a.json")
        assert watched.poke().waiting is None

    def test_a_missing_bucket_is_refused_by_name(self, opened, bucket):
        missing = opened("no-such-bucket")
        assert refused(missing) == (
            f"S3 returned NoSuchBucket to the {missing.component} (ListObjectsV2, bucket 'no-such-bucket', "
            "aws_conn_id 'deliveries'): create the bucket, or correct bucket_name."
        )

    def test_a_bucket_that_vanished_is_refused_although_it_was_listed(self, opened, bucket):
        watched = opened(bucket.name)
        watched.poke()
        bucket.client.delete_bucket(Bucket=bucket.name)
        assert "NoSuchBucket" in refused(watched)

    def test_a_name_that_no_bucket_can_have_is_refused(self, opened, bucket):
        assert "correct bucket_name" in refused(opened("no bucket"))

    def test_an_object_is_written(self, bucket):
        Bucket(bucket.name, ACCESS).put("m.jsonl", b"line")
        assert bucket.client.get_object(Bucket=bucket.name, Key="m.jsonl")["Body"].read() == b"line"

    def test_writing_to_a_missing_bucket_is_refused_by_what_was_done(self, bucket):
        with pytest.raises(
            HealthExConfigurationError, match=r"NoSuchBucket to the worker \(PutObject, bucket 'no-such-bucket'"
        ):
            Bucket("no-such-bucket", ACCESS).put("m.jsonl", b"line")


class TestRequests:
    def test_a_poke_lists_and_nothing_else(self, opened, faulty):
        faulty.script(s3.listing("d/1", token="t/1+2="), s3.listing("d/2"))
        assert opened().poke().keys == ["d/1", "d/2"]
        first, second = faulty.requests
        assert (first.method, first.path) == ("GET", "/bucket")
        assert first.query["prefix"] == second.query["prefix"] == "d/"
        assert "continuation-token" not in first.query
        assert second.query["continuation-token"] == "t/1+2="

    def test_keys_come_as_they_are(self, opened, faulty):
        faulty.script(s3.listing("d/a b&c+ü.json"))
        assert opened().poke().keys == ["d/a b&c+ü.json"]

    def test_without_a_date_the_local_clock_counts(self, opened, faulty):
        faulty.script(s3.listing("d/1", modified=datetime.now(timezone.utc) - timedelta(hours=1), date=None))
        assert opened().poke(expected(quiet_period=300)).waiting is None

    def test_with_a_date_the_local_clock_does_not(self, opened, faulty):
        written = datetime(2020, 5, 4, 3, 2, 0, tzinfo=timezone.utc)
        faulty.script(s3.listing("d/1", modified=written, date="Mon, 04 May 2020 03:02:10 GMT"))
        verdict = opened().poke(expected(quiet_period=300))
        assert verdict.reason == "1 fresh object, settling: 290 s of 300 s left"


@pytest.mark.parametrize("trouble", TRANSIENT)
class TestTransientErrors:
    def test_are_waited_for_and_the_next_poke_succeeds(self, opened, faulty, trouble):
        faulty.script(TRANSIENT[trouble], s3.listing("d/1"))
        watched = opened()
        verdict = watched.poke()
        code = trouble.partition(" ")[0]
        assert verdict.reason == f"S3 returned {code} to the {watched.component}; retrying at the next poke"
        assert len(faulty.requests) == 1
        assert watched.poke().keys == ["d/1"]

    def test_on_a_later_page_are_waited_for_and_the_next_poke_begins_anew(self, opened, faulty, trouble):
        faulty.script(s3.listing("d/1", token="t"), TRANSIENT[trouble], s3.listing("d/2"))
        watched = opened()
        assert watched.poke().waiting
        assert watched.poke().keys == ["d/2"]
        assert "continuation-token" not in faulty.requests[-1].query


class TestOtherTransientErrors:
    def test_a_reset_connection(self, opened, faulty):
        faulty.script([s3.RESET] * 9)  # aiohttp repeats a GET of its own
        watched = opened()
        # aiobotocore calls it an EndpointConnectionError.
        assert re.search(
            rf"the {watched.component} \((ConnectionClosed|EndpointConnection)Error\)", watched.poke().reason
        )
        faulty.clear()
        faulty.script(s3.listing("d/1"))
        assert watched.poke().waiting is None

    def test_a_connection_closed_within_an_answer(self, opened, faulty):
        faulty.script(s3.CUT_OFF, s3.listing("d/1"))
        watched = opened()
        reason = watched.poke().reason  # boto3 makes a 500 of it
        assert re.match(rf"S3 (returned 500 to|did not answer) the {watched.component}\b", reason)
        assert watched.poke().waiting is None

    def test_silence(self, opened, faulty):
        faulty.script(s3.SILENCE, s3.listing("d/1"))
        watched = opened(access=IMPATIENT)
        assert "ReadTimeoutError" in watched.poke().reason
        assert watched.poke().waiting is None

    def test_nobody_listening(self, opened, monkeypatch):
        connect(monkeypatch, s3.closed_port_url())
        watched = opened()
        assert (
            watched.poke().reason
            == f"S3 did not answer the {watched.component} (EndpointConnectionError); retrying at the next poke"
        )

    def test_a_server_that_comes_back_elsewhere(self, opened, faulty, monkeypatch):
        """A new session reads the connection anew, as it must for new credentials."""
        connect(monkeypatch, s3.closed_port_url())
        watched = opened()
        assert watched.poke().waiting
        connect(monkeypatch, faulty.endpoint_url)
        faulty.script(s3.listing("d/1"))
        assert watched.poke().waiting is None

    def test_a_credential_endpoint_that_is_away(self, opened, faulty, without_credentials, monkeypatch):
        monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
        monkeypatch.setenv("AIRFLOW_CONN_DELIVERIES", aws_connection(faulty.endpoint_url).replace("test-key", ""))
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", s3.closed_port_url())
        assert "CredentialRetrievalError" in opened().poke().reason

    def test_a_listing_that_failed_has_not_listed(self, opened, faulty):
        faulty.script(s3.SLOW_DOWN, s3.ACCESS_DENIED)
        watched = opened()
        watched.poke()
        assert "AccessDenied" in refused(watched)


class TestPermanentErrors:
    @pytest.mark.parametrize("code", PERMANENT)
    def test_name_component_operation_bucket_and_advice(self, opened, faulty, code):
        answer, advice = PERMANENT[code]
        faulty.script(answer)
        watched = opened()
        message = refused(watched)
        assert message.startswith(
            f"S3 returned {code} to the {watched.component} (ListObjectsV2, bucket 'bucket', "
            "aws_conn_id 'deliveries'): "
        )
        assert advice in message
        assert len(faulty.requests) == 1

    @pytest.mark.parametrize("code", sorted(PERMANENT.keys() - {"AccessDenied", "InvalidToken"}))
    def test_are_permanent_after_a_success_too(self, opened, faulty, code):
        faulty.script(s3.EMPTY, PERMANENT[code][0])
        watched = opened()
        watched.poke()
        assert code in refused(watched)

    @pytest.mark.parametrize("code", ["AccessDenied", "InvalidToken"])
    def test_a_denial_after_a_success_is_transient(self, opened, faulty, code):
        faulty.script(s3.EMPTY, PERMANENT[code][0], s3.listing("d/1"))
        watched = opened()
        watched.poke()
        assert watched.poke().reason == f"S3 returned {code} to the {watched.component}; retrying at the next poke"
        assert watched.poke().waiting is None

    def test_a_denial_is_transient_where_an_earlier_poke_had_listed(self, opened, faulty):
        faulty.script(s3.ACCESS_DENIED)
        assert opened(listed=True).poke().waiting

    def test_a_denial_on_the_second_page_is_transient_as_the_first_was_listed(self, opened, faulty):
        faulty.script(s3.listing("d/1", token="t"), s3.ACCESS_DENIED)
        assert opened().poke().waiting

    def test_no_credentials(self, opened, faulty, without_credentials, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_DELIVERIES", aws_connection(faulty.endpoint_url).replace("test-key", ""))
        message = refused(opened())
        assert message.startswith("NoCredentialsError on the ")
        assert "give it an AWS connection" in message
        assert faulty.requests == []

    def test_a_connection_that_is_missing_is_refused_by_its_name(self, opened, airflow_database):
        message = refused(opened(access=replace(ACCESS, aws_conn_id="no_such_connection")))
        assert "no Airflow connection 'no_such_connection': create the connection" in message

    @pytest.mark.parametrize("nameless", [None, "", "aws_default"])
    def test_a_connection_that_nobody_named_may_be_missing(
        self, opened, airflow_database, faulty, without_credentials, monkeypatch, nameless
    ):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint_url)
        faulty.script(s3.listing("d/1"))
        assert opened(access=replace(ACCESS, aws_conn_id=nameless)).poke().waiting is None

    @pytest.mark.parametrize("endpoint_url", ["minio:9000", "127.0.0.1:9000", "not an url"])
    def test_an_endpoint_that_is_no_url(self, opened, monkeypatch, endpoint_url):
        connect(monkeypatch, endpoint_url)
        watched = opened()
        message = refused(watched)
        assert message.startswith(f"The {watched.component} can make no S3 client of aws_conn_id 'deliveries'")
        assert "endpoint_url" in message


def test_an_error_of_our_own_is_no_matter_of_s3(opened, faulty):
    watched = opened()

    def broken():
        yield [{"Prefix": "d/"}]
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        watched.run(broken())


class TestWrongListings:
    """Nothing is decided on them, and none of them holds a poke for ever."""

    @pytest.mark.parametrize(
        ("pages", "reason"),
        [
            ([s3.listing("d/1", truncated=True)], "truncated without a continuation token"),
            (
                [s3.listing("d/1", token="t"), s3.listing("d/2", token="t"), s3.listing("d/3", token="t")],
                "a continuation token was repeated",
            ),
            ([s3.listing(token=str(n)) for n in range(200)], "101 pages without a row"),
        ],
    )
    def test_a_listing_that_breaks_off_is_made_again(self, opened, faulty, pages, reason):
        faulty.script(pages)
        watched = opened()
        assert watched.poke().reason == (
            f"S3 returned an incomplete listing to the {watched.component} ({reason}); retrying at the next poke"
        )
        faulty.clear()
        faulty.script(s3.listing("d/1"))
        assert watched.poke().waiting is None

    @pytest.mark.parametrize(
        ("pages", "problem"),
        [
            ([s3.listing("d/2", "d/1")], "keys are not in order"),
            ([s3.listing("d/1", "d/3", "d/2")], "keys are not in order"),
            ([s3.listing("d/2", token="t"), s3.listing("d/1")], "keys are not in order"),
            ([s3.listing("d/1", "d/1")], "lists a key twice"),
            ([s3.listing("d/1", token="t"), s3.listing("d/1")], "lists a key twice"),
            ([s3.listing("d/1", "e/1")], "outside the prefix"),
            ([s3.Answer(s3.listing("d/1").body.replace("<Size>1</Size>", ""))], "has no Size"),
            ([s3.Answer(s3.listing("d/1").body.replace("<Key>d/1</Key>", ""))], "has no Key"),
            ([s3.Answer(re.sub("<LastModified>.*</LastModified>", "", s3.listing("d/1").body))], "no LastModified"),
        ],
    )
    def test_a_listing_that_cannot_be_decided_on_is_refused_without_a_key(self, opened, faulty, pages, problem):
        faulty.script(pages)
        watched = opened()
        message = refused(watched)
        assert message.startswith(
            f"S3 returned an unusable listing to the {watched.component} (bucket 'bucket', aws_conn_id 'deliveries'): "
        )
        assert problem in message
        assert "d/" not in message

    @pytest.mark.parametrize(
        "body",
        [
            s3.listing("d/1").body.replace("<Size>1</Size>", "<Size>much</Size>"),
            re.sub("<LastModified>.*</LastModified>", "<LastModified>soon</LastModified>", s3.listing("d/1").body),
        ],
    )
    def test_a_field_that_cannot_be_parsed_ends_typed_or_is_waited_for(self, opened, faulty, body):
        faulty.script(s3.Answer(body))
        try:
            assert opened().poke().waiting
        except HealthExConfigurationError as error:
            assert "can't be read" in str(error)  # noqa: PT017 - either will do


@pytest.fixture
def nothing_left_open(caplog):
    """Fail where a session or a socket was dropped and not closed."""
    caplog.set_level(logging.WARNING)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    leaks = [str(warning.message) for warning in seen if issubclass(warning.category, ResourceWarning)]
    leaks += [record.getMessage() for record in caplog.records if "nclosed" in record.getMessage()]
    assert leaks == []


class TestSeveralRequestsAtOnce:
    """As a list of paths makes them."""

    paths = expected("d/", "e/")

    def test_each_path_gets_its_own_listing(self, opened, bucket, monkeypatch):
        connect(monkeypatch, bucket.endpoint_url)
        for key in ("d/1", "e/1", "f/1"):
            bucket.put(key)
        assert opened(bucket.name).poke(self.paths).keys == ["d/1", "e/1"]

    @pytest.mark.parametrize("first", [0, 1])
    def test_an_error_of_one_is_the_pokes(self, opened, faulty, first):
        faulty.script(*[s3.SLOW_DOWN, s3.EMPTY][:: 1 - 2 * first], s3.EMPTY, s3.EMPTY)
        watched = opened()
        assert watched.poke(self.paths).reason.startswith("S3 returned SlowDown to the ")
        assert watched.poke(self.paths).reason == "no objects under d/"

    def test_an_error_of_one_is_not_held_up_by_another(self, opened, faulty):
        faulty.script(s3.ACCESS_DENIED, s3.SILENCE)
        started = time.monotonic()
        with pytest.raises(HealthExConfigurationError, match="AccessDenied"):
            opened(access=replace(ACCESS, botocore_config={**ACCESS.botocore_config, "read_timeout": 60})).poke(
                self.paths
            )
        assert time.monotonic() - started < 20

    def test_one_that_does_not_end_is_given_up(self, opened, faulty, monkeypatch):
        monkeypatch.setattr(module, "REQUEST_LIMIT", 0.7)
        faulty.script(s3.EMPTY, s3.SILENCE)
        watched = opened(access=replace(ACCESS, botocore_config={**ACCESS.botocore_config, "read_timeout": 60}))
        assert "within 0.7 s" in watched.poke(self.paths).reason

    @pytest.mark.parametrize(("connections", "requests"), [(1, 1), (10, 2)])
    def test_no_more_are_made_than_the_client_has_connections(self, opened, faulty, monkeypatch, connections, requests):
        monkeypatch.setattr(module, "REQUEST_LIMIT", 1.5)
        faulty.script(s3.SILENCE, s3.SILENCE)
        config = {**ACCESS.botocore_config, "read_timeout": 60, "max_pool_connections": connections}
        assert "within 1.5 s" in opened(access=replace(ACCESS, botocore_config=config)).poke(self.paths).reason
        assert len(faulty.requests) == requests

    @pytest.mark.parametrize("answers", [[s3.SLOW_DOWN, s3.SILENCE], [s3.SILENCE, s3.SILENCE]], ids=["error", "limit"])
    def test_nothing_is_left_open(self, faulty, nothing_left_open, monkeypatch, answers):
        monkeypatch.setattr(module, "REQUEST_LIMIT", 0.7)
        faulty.script(*answers)

        async def run() -> None:
            async with AsyncBucket("bucket", ACCESS, TRIGGERER) as bucket:
                assert await bucket.run(ArrivalWait(self.paths, Bucket.listing).poke())

        asyncio.run(run())


class TestAnswersThatDoNotEnd:
    @pytest.mark.parametrize("stuck", [s3.HALF_A_CHUNK, s3.WRONG_CHUNKS, s3.DRIPPING, s3.SILENCE], ids=str)
    def test_are_given_up_and_the_next_poke_succeeds(self, opened, faulty, monkeypatch, stuck):
        faulty.script(s3.EMPTY, stuck, s3.listing("d/1"))
        watched = opened(access=replace(ACCESS, botocore_config={**ACCESS.botocore_config, "read_timeout": 60}))
        watched.poke()  # opens the client, which may take longer than the limit
        monkeypatch.setattr(module, "REQUEST_LIMIT", 0.7)
        started = time.monotonic()
        verdict = watched.poke()
        assert time.monotonic() - started < 20
        assert verdict.reason.startswith(f"S3 did not answer the {watched.component} ")
        assert verdict.reason.endswith("; retrying at the next poke")
        monkeypatch.undo()
        connect(monkeypatch, faulty.endpoint_url)
        assert watched.poke().waiting is None

    def test_hold_a_limited_number_of_threads(self, faulty, monkeypatch):
        def threads() -> int:
            return sum(thread.name == module._THREAD for thread in threading.enumerate())

        connect(monkeypatch, faulty.endpoint_url)
        monkeypatch.setattr(module, "_THREAD", "of this test alone")
        monkeypatch.setattr(module, "REQUEST_LIMIT", 0.3)
        monkeypatch.setattr(module, "MAX_THREADS", 2)
        faulty.script(*[s3.DRIPPING] * 2, s3.listing("d/1"))
        watched = OnWorker()
        for _ in range(4):
            assert watched.poke().reason.startswith("S3 did not answer the worker within 0.3 s")
            assert threads() <= 2
        monkeypatch.setattr(module, "MAX_THREADS", 3)
        monkeypatch.setattr(module, "REQUEST_LIMIT", 60)
        assert watched.poke().waiting is None

    def test_are_named_by_their_limit(self, opened, faulty, monkeypatch):
        monkeypatch.setattr(module, "REQUEST_LIMIT", 0.5)
        faulty.script(s3.DRIPPING)
        watched = opened()
        assert watched.poke().reason == (
            f"S3 did not answer the {watched.component} within 0.5 s; retrying at the next poke"
        )

    def test_hold_no_manifest_either(self, faulty, monkeypatch):
        monkeypatch.setattr(module, "WRITE_LIMIT", 0.5)
        faulty.script(s3.DRIPPING)
        with pytest.raises(HealthExError, match=r"within 0\.5 s: the manifest is not written"):
            Bucket("bucket", ACCESS).put("m.jsonl", b"line")


class TestCredentials:
    @pytest.fixture
    def assuming(self, faulty, monkeypatch):
        """Let the connection assume a role, at the faulty server too."""
        connection = json.loads(aws_connection(faulty.endpoint_url, SECRET))
        connection["extra"] |= {"role_arn": "arn:aws:iam::123456789012:role/reader"}
        connection["extra"] |= {"service_config": {"sts": {"endpoint_url": faulty.endpoint_url}}}
        monkeypatch.setenv("AIRFLOW_CONN_DELIVERIES", json.dumps(connection))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", faulty.endpoint_url)
        return faulty

    def test_a_role_that_sts_refuses_is_reported_as_sts(self, opened, assuming):
        assuming.script(s3.ROLE_DENIED)
        watched = opened()
        assert refused(watched) == (
            f"STS returned AccessDenied to the {watched.component} (AssumeRole, bucket 'bucket', "
            "aws_conn_id 'deliveries'): let these credentials call sts:AssumeRole for the role of the connection."
        )

    def test_sts_throttled_is_transient(self, opened, assuming):
        assuming.script([s3.STS_THROTTLED] * 9)
        watched = opened()
        assert watched.poke().reason == (
            f"STS returned Throttling to the {watched.component} (AssumeRole); retrying at the next poke"
        )


class TestExternalIds:
    """The path names them, and botocore's texts quote the URL, which has the path."""

    @pytest.mark.parametrize(
        "answer", [s3.ACCESS_DENIED, s3.NO_SUCH_BUCKET, s3.RESET, s3.GARBAGE, s3.CUT_OFF, s3.BROKEN_HEADER], ids=str
    )
    def test_no_error_and_no_cause_of_it_has_one(self, opened, faulty, answer, caplog):
        caplog.set_level(logging.INFO)
        faulty.script([answer] * 9)
        self.assert_none(opened(), caplog)

    def test_nor_has_that_of_a_certificate_which_quotes_the_url(self, opened, certificate, monkeypatch, caplog):
        with s3.FaultyS3(certificate) as server:
            connect(monkeypatch, server.endpoint_url)
            self.assert_none(opened(), caplog)

    @staticmethod
    def assert_none(watched, caplog) -> None:
        try:
            shown = watched.poke(expected("d/{externalId}/", external_id=EXTERNAL_ID)).reason
        except HealthExConfigurationError as error:
            shown = every_text(error) + "".join(traceback.format_exception(error))
        assert EXTERNAL_ID not in shown
        assert EXTERNAL_ID not in caplog.text


class TestWriting:
    @pytest.mark.parametrize("answer", [s3.SLOW_DOWN, s3.RESET], ids=["SlowDown", "reset"])
    def test_a_transient_error_can_be_retried_and_names_no_key(self, faulty, answer):
        faulty.script(answer)
        with pytest.raises(HealthExError, match=r"the manifest is not written.*a retry of the task") as caught:
            Bucket("bucket", ACCESS).put(f"m/{EXTERNAL_ID}.jsonl", b"line")
        assert not isinstance(caught.value, HealthExConfigurationError)
        assert EXTERNAL_ID not in every_text(caught.value)

    @pytest.mark.parametrize("listed", [False, True])
    def test_a_denial_is_refused_although_the_bucket_was_listed(self, faulty, listed):
        faulty.script(s3.ACCESS_DENIED)
        with pytest.raises(
            HealthExConfigurationError, match=r"AccessDenied to the worker \(PutObject, bucket 'bucket'.*s3:PutObject"
        ):
            Bucket("bucket", ACCESS, listed=listed).put("m.jsonl", b"line")


class TestTheAsynchronousClient:
    @staticmethod
    def pokes(count: int, leave_with: type[Exception] | None = None) -> None:
        async def run() -> None:
            async with AsyncBucket("bucket", ACCESS, TRIGGERER) as bucket:
                for _ in range(count):
                    await bucket.run(one_poke())
                if leave_with:
                    raise leave_with

        asyncio.run(run())

    def test_it_is_closed_at_the_end(self, faulty, nothing_left_open):
        self.pokes(3)

    def test_it_is_closed_after_transient_errors(self, faulty, nothing_left_open):
        faulty.script(s3.SLOW_DOWN, s3.RESET, s3.GARBAGE)
        self.pokes(4)

    def test_it_is_closed_after_a_refusal(self, faulty, nothing_left_open):
        faulty.script(s3.NO_SUCH_BUCKET)
        with pytest.raises(HealthExConfigurationError):
            self.pokes(1)

    def test_it_is_closed_where_the_trigger_breaks(self, faulty, nothing_left_open):
        with pytest.raises(RuntimeError):
            self.pokes(1, RuntimeError)

    def test_it_is_closed_where_the_trigger_is_cancelled_in_a_request(self, faulty, nothing_left_open):
        faulty.script(s3.SILENCE)

        async def run() -> None:
            async def wait() -> None:
                async with AsyncBucket("bucket", ACCESS, TRIGGERER) as bucket:
                    await bucket.run(one_poke())

            task = asyncio.create_task(wait())
            while not faulty.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(run())

    def test_a_leak_would_be_seen(self, faulty):
        """The fact that the tests above rely on."""
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", ResourceWarning)

            async def run() -> None:
                await AsyncBucket("bucket", ACCESS, TRIGGERER).run(one_poke())
                gc.collect()

            asyncio.run(run())
        assert any("Unclosed" in str(warning.message) for warning in seen)

    def test_the_client_is_kept_between_pokes(self, faulty):
        async def run() -> None:
            async with AsyncBucket("bucket", ACCESS, TRIGGERER) as bucket:
                await bucket.run(one_poke())
                client = bucket._client
                await bucket.run(one_poke())
                assert bucket._client is client
            assert bucket._client is None

        asyncio.run(run())


def test_the_server_of_these_tests_closes_its_port():
    with s3.FaultyS3() as server:
        host, port = server.endpoint_url.removeprefix("http://").split(":")
    with pytest.raises(OSError), socket.create_connection((host, int(port)), timeout=1):
        pass
