"""One look at a bucket, driven by hand: which requests it makes, and what it does with their pages."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from airflow_provider_healthex.delivery.listing import look

from airflow_provider_healthex.delivery import Arrived, Expectation, Waiting, expand

SINCE = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
NOW = SINCE + timedelta(seconds=60)
DATE = "Sun, 22 Nov 2026 17:41:05 GMT"


def page(
    *keys: str, date: str | None = DATE, token: str | None = None, modified: datetime = SINCE, size: int = 7
) -> dict:
    """Write a page as boto3 and aiobotocore give it."""
    headers = {} if date is None else {"date": date}
    answer = {"ResponseMetadata": {"HTTPHeaders": headers}, "IsTruncated": token is not None, "KeyCount": len(keys)}
    if keys:
        answer["Contents"] = [{"Key": k, "LastModified": modified, "Size": size, "ETag": '"e"'} for k in keys]
    if token:
        answer["NextContinuationToken"] = token
    return answer


def expected(*paths: str, wildcard: bool = False, **changes) -> Expectation:
    targets = tuple(expand(path, {}, wildcard=wildcard) for path in paths)
    return Expectation(**{"targets": targets, "since": SINCE, "quiet_period": 0, **changes})


def no_clock() -> datetime:
    raise AssertionError("the local clock was asked")


def drive(expectation: Expectation, pages: list[dict], clock=no_clock):
    """Answer each request with the next page, and return the requests and the verdict."""
    steps, answers, requests = look(expectation, clock), iter(pages), []
    try:
        requests.append(next(steps))
        while True:
            requests.append(steps.send(next(answers)))
    except StopIteration as end:
        assert not list(answers), "a page was not asked for"
        return requests, end.value


class TestRequests:
    def test_a_prefix_is_listed(self):
        requests, verdict = drive(expected("d/p/"), [page("d/p/a")])
        assert requests == [{"Prefix": "d/p/"}]
        assert [(row.key, row.last_modified, row.size, row.etag) for row in verdict.objects] == [
            ("d/p/a", SINCE, 7, '"e"')
        ]

    def test_a_glob_is_listed_from_its_literal_beginning(self):
        requests, verdict = drive(expected("d/p/x*.json", wildcard=True), [page("d/p/x1.json", "d/p/x2.xml")])
        assert requests == [{"Prefix": "d/p/x"}]
        assert [row.key for row in verdict.objects] == ["d/p/x1.json"]

    def test_one_key_asks_for_one_row(self):
        requests, verdict = drive(expected("d/p.json"), [page("d/p.json", token="more")])
        assert requests == [{"Prefix": "d/p.json", "MaxKeys": 1}]
        assert isinstance(verdict, Arrived)

    def test_a_longer_namesake_is_not_the_key(self):
        _, verdict = drive(expected("d/p.json"), [page("d/p.json.part")])
        assert verdict == Waiting("no objects at d/p.json")

    def test_pages_are_continued_to_the_last_and_their_objects_add_up(self):
        pages = [page("d/1", token="t1"), page("d/2", "d/3", token="t2"), page("d/4")]
        requests, verdict = drive(expected("d/"), pages)
        assert requests == [
            {"Prefix": "d/"},
            {"Prefix": "d/", "ContinuationToken": "t1"},
            {"Prefix": "d/", "ContinuationToken": "t2"},
        ]
        assert [row.key for row in verdict.objects] == ["d/1", "d/2", "d/3", "d/4"]

    def test_a_page_without_objects_is_no_end(self):
        requests, verdict = drive(expected("d/"), [page(token="t1"), page("d/1")])
        assert len(requests) == 2
        assert isinstance(verdict, Arrived)

    def test_an_empty_listing_is_waited_on(self):
        _, verdict = drive(expected("d/"), [page()])
        assert verdict == Waiting("no objects under d/")

    def test_every_target_is_listed_from_its_beginning(self):
        pages = [page("a/1", token="t"), page("a/2"), page("b/1"), page("c")]
        requests, verdict = drive(expected("a/", "b/", "c"), pages)
        assert requests == [
            {"Prefix": "a/"},
            {"Prefix": "a/", "ContinuationToken": "t"},
            {"Prefix": "b/"},
            {"Prefix": "c", "MaxKeys": 1},
        ]
        assert [row.key for row in verdict.objects] == ["a/1", "a/2", "b/1", "c"]

    def test_an_object_in_the_listings_of_two_targets_is_one(self):
        two = expected("d/", "d/p/", min_objects=2)
        _, verdict = drive(two, [page("d/p/1"), page("d/p/1")])
        assert verdict == Waiting("1 of at least 2 fresh objects under d/")


class TestClock:
    quiet = expected("d/", quiet_period=300)

    def test_it_is_the_storages(self):
        _, verdict = drive(self.quiet, [page("d/1")])
        assert verdict == Waiting("1 fresh object, settling: 240 s of 300 s left")

    def test_it_is_that_of_the_first_page(self):
        """A later one would let objects rest while the listing is still read."""
        pages = [page("d/1", token="t"), page("d/2", date="Sun, 22 Nov 2026 23:00:00 GMT")]
        _, verdict = drive(self.quiet, pages)
        assert verdict == Waiting("2 fresh objects, settling: 240 s of 300 s left")

    def test_it_is_that_of_the_first_target(self):
        both = expected("d/", "e/", quiet_period=300)
        _, verdict = drive(both, [page("d/1"), page("e/1", date="Sun, 22 Nov 2026 23:00:00 GMT")])
        assert verdict == Waiting("2 fresh objects, settling: 240 s of 300 s left")

    @pytest.mark.parametrize("date", [DATE, "Sun, 22 Nov 2026 18:41:05 +0100", "Sun, 22 Nov 2026 17:41:05 -0000"])
    def test_a_date_is_read_with_any_time_zone(self, date):
        _, verdict = drive(self.quiet, [page("d/1", date=date)])
        assert verdict == Waiting("1 fresh object, settling: 240 s of 300 s left")

    @pytest.mark.parametrize(
        "date",
        [
            *(None, "", " ", "now", "2026-11-22T17:41:05Z", "Sun, 99 Nov 2026 17:41:05 GMT"),
            *("Sun, 22 Nov 2026 17:99:05 GMT", "Sun, 22 Nov 99999999999999999999 17:41:05 GMT"),
            "Sun, 22 Nov 2026 17:41:05 +9999",
        ],
    )
    def test_where_a_storage_tells_none_that_can_be_read_it_is_the_local_one(self, date):
        clock = iter([NOW]).__next__
        _, verdict = drive(self.quiet, [page("d/1", date=date)], clock)
        assert verdict == Waiting("1 fresh object, settling: 240 s of 300 s left")

    def test_an_answer_without_metadata_is_no_trouble(self):
        bare = {"Contents": [{"Key": "d/1", "LastModified": SINCE, "Size": 1}]}
        _, verdict = drive(expected("d/"), [bare], lambda: NOW)
        assert verdict.objects[0].etag == ""

    def test_the_local_clock_is_utcs(self):
        yesterday = datetime.now(timezone.utc) - timedelta(days=1)
        steps = look(expected("d/", since=yesterday, quiet_period=3600))
        next(steps)
        with pytest.raises(StopIteration) as end:
            steps.send(page("d/1", date=None, modified=yesterday))
        assert isinstance(end.value.value, Arrived)
