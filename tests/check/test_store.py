from __future__ import annotations

import pytest
from helpers import s3_faults, support
from helpers.big_s3 import BigS3
from helpers.keys import NOW, account, deliveries, unrelated

from airflow_provider_healthex.check.layout import find_layout
from airflow_provider_healthex.check.store import S3Store, StoreError
from airflow_provider_healthex.delivery import StoredObject


@pytest.fixture
def listed(monkeypatch):
    """Survey a bucket that holds some objects."""

    def survey(rows, max_requests=200, first=""):
        with BigS3(rows) as server:
            monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", support.aws_connection(server.endpoint_url))
            listing = S3Store("bucket", "aws_default").survey(max_requests, first)
            assert listing.requests == server.listings
            return listing

    return survey


def test_a_hundred_thousand_objects_are_listed_within_the_bound(listed):
    ids, pairs = account(3_000)
    rows = [*deliveries("retrieval below", pairs, times=5), *unrelated(70_000)]
    listing = listed(rows)
    assert listing.requests <= 200
    assert listing.complete
    assert len(listing.rows) == len(rows) == 100_000
    assert find_layout(listing.rows, ids).best.patients == 3_000


def test_a_small_bucket_takes_one_request(listed):
    _, pairs = account()
    listing = listed(deliveries("one file", pairs))
    assert (listing.requests, listing.complete, len(listing.rows), listing.cut) == (1, True, 12, ())


def test_an_empty_bucket_takes_one_request(listed):
    assert (listed([]).requests, listed([]).rows) == (1, [])


def test_the_bound_is_kept_and_each_folder_has_its_share(listed):
    ids, pairs = account(300)
    logs = [StoredObject(f"a-logs/{n:06}.log", NOW, 1) for n in range(40_000)]
    listing = listed([*logs, *deliveries("several", pairs), *unrelated(5_000)], max_requests=20)
    assert listing.requests == 20
    assert not listing.complete
    assert find_layout(listing.rows, ids).best.patients > 100, "not only logs were listed"


def test_what_a_given_path_begins_with_is_listed_before_the_rest(listed):
    ids, pairs = account(300)
    many = [StoredObject(f"{letter}{n:05}/x", NOW, 1) for letter in "abc" for n in range(9_000)]
    rows = [*many, *deliveries("several", pairs)]
    assert find_layout(listed(rows, 10).rows, ids).best is None, "the folders are too many to look into each"
    assert find_layout(listed(rows, 10, first="in/").rows, ids).best.patients == 300


def test_one_request_is_enough_for_a_verdict_on_rights(listed):
    _, pairs = account(3_000)
    listing = listed(deliveries("one file", pairs), max_requests=1)
    assert (listing.requests, listing.complete) == (1, False)
    assert listing.cut == (listing.rows[-1].key,)


def test_folders_below_a_single_one_are_found(listed):
    ids, pairs = account(200)
    rows = [row._replace(key=f"only/this/{row.key}") for row in [*deliveries("several", pairs), *unrelated(30_000)]]
    listing = listed(rows, max_requests=20)
    assert listing.requests <= 20
    assert find_layout(listing.rows, ids).best.path == "only/this/in/{orgId}/{healthexPatientId}/"


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (s3_faults.ACCESS_DENIED, "grant s3:ListBucket"),
        (s3_faults.NO_SUCH_BUCKET, "correct bucket_name"),
        (s3_faults.INVALID_ACCESS_KEY, "correct the access key"),
        (s3_faults.WRONG_SIGNATURE, "correct the access key"),
        (s3_faults.MALFORMED_AUTHORIZATION, "region_name"),
    ],
)
def test_a_refusal_says_what_to_do(monkeypatch, answer, advice):
    with s3_faults.FaultyS3() as server:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", support.aws_connection(server.endpoint_url))
        server.script([answer] * 10)
        with pytest.raises(StoreError) as refused:
            S3Store("bucket", "aws_default").survey(200)
    assert advice in str(refused.value)
    assert "'bucket'" in str(refused.value)


def test_a_missing_connection_is_said():
    with pytest.raises(StoreError, match="There is no Airflow connection 'nowhere'"):
        S3Store("bucket", "nowhere").survey(200)


@pytest.mark.parametrize(
    ("name", "text"),
    [("b--use1-az4--x-s3", "directory bucket"), ("b-s3alias", "access point"), ("b", "general purpose")],
)
def test_the_kind_of_bucket_is_told_by_its_name(name, text):
    assert text in S3Store(name, "aws_default").facts()[0][0]
