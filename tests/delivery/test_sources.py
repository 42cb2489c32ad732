"""How a feed lists everything under a path: side by side, and right whatever the poll before showed."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from helpers.stores import MemoryS3, MemorySftp
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_healthex.delivery import expand
from airflow_provider_healthex.delivery.s3_listing import WIDTH, IncompleteListing, UnusableListing
from airflow_provider_healthex.delivery.sftp_requests import EntryType, ListFolder, NoSuchRoot, Obstacle, Stat
from airflow_provider_healthex.delivery.sources import MAX_RANGES, MIN_PAGES, S3Source, SftpSource

NOW = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
UNDER = expand("d/", {})


class Bucket:
    """A bucket of small pages, listed by one source; counts the requests of each batch."""

    def __init__(self, keys: Any, page: int = 10) -> None:
        self.s3, self.source = MemoryS3(dict.fromkeys(keys, NOW), NOW, page), S3Source()
        self.batches: list[int] = []

    def poll(self) -> list[str]:
        """Return the keys as they are handed out."""
        found: list[str] = []
        plan, self.batches = self.source.list(UNDER, lambda rows, _: found.extend(row.key for row in rows)), []
        batch = next(plan)
        try:
            while True:
                self.batches.append(len(batch))
                batch = plan.send([self.s3.answer(request) for request in batch])
        except StopIteration:
            return found


def names(count: int) -> list[str]:
    return [f"d/{number:05}" for number in range(count)]


class TestS3Source:
    """How a feed lists a bucket."""

    def test_the_first_poll_lists_page_after_page_and_the_next_ones_several_ranges_at_once(self):
        bucket = Bucket(names(3_000))
        assert bucket.poll() == names(3_000)
        assert bucket.batches == [1] * 300
        for _ in range(2):
            assert sorted(bucket.poll()) == names(3_000)
            assert max(bucket.batches) == WIDTH
            assert sum(bucket.batches) == 300  # pages begin where they did
            assert len(bucket.batches) <= 300 / WIDTH + MIN_PAGES

    def test_what_is_remembered_are_a_few_keys(self):
        bucket = Bucket(names(9_000))
        bucket.poll()
        assert len(bucket.source._boundaries) == MAX_RANGES - 1

    @pytest.mark.parametrize("count", [0, 1, 10, 11, 35, 70])
    def test_a_few_pages_are_one_range(self, count):
        bucket = Bucket(names(count))
        bucket.poll()
        assert sorted(bucket.poll()) == names(count)
        assert set(bucket.batches) == {1}

    def test_a_bucket_that_grew_costs_at_most_a_request_more_for_each_range(self):
        bucket = Bucket(names(3_000))
        bucket.poll()
        grown = sorted([*names(3_000), *(f"{key}-more" for key in names(3_000)[::7])])
        bucket.s3.objects = dict.fromkeys(grown, NOW)
        assert sorted(bucket.poll()) == grown
        assert sum(bucket.batches) <= -(-len(grown) // 10) + MAX_RANGES
        assert len(bucket.batches) <= 1.5 * sum(bucket.batches) / WIDTH

    def test_what_is_elsewhere_in_the_bucket_is_not_listed(self):
        bucket = Bucket([*names(100), "c", "e", "d"])
        for _ in range(2):
            assert sorted(bucket.poll()) == names(100)
        assert {request["Prefix"] for request in bucket.s3.requests} == {"d/"}

    @given(
        st.lists(st.sets(st.text(alphabet="ab/\U0001f600z", max_size=4).map("d/".__add__), max_size=40), min_size=2),
        st.integers(1, 3),
    )
    def test_each_key_is_handed_out_once_whatever_changed_since(self, histories, page):
        bucket = Bucket([], page)
        for keys in histories:
            bucket.s3.objects = dict.fromkeys(keys, NOW)
            bucket.s3._order = sorted(keys, key=str.encode)
            assert sorted(bucket.poll()) == sorted(keys)

    def test_the_earliest_clock_counts(self):
        bucket = Bucket(names(200))
        bucket.poll()
        answer, dates = bucket.s3.answer, iter(range(1_000))

        def later(request: Any) -> Any:
            bucket.s3.now = NOW + timedelta(seconds=next(dates))
            return answer(request)

        bucket.s3.answer = later
        bucket.poll()
        assert bucket.source.now == int(NOW.timestamp())

    def test_without_a_clock_of_the_stores_ours_counts_before_the_first_request(self):
        bucket, clock = Bucket(names(50)), [NOW]
        bucket.source = S3Source(lambda: clock[0])
        answer = bucket.s3.answer

        def slow(request: Any) -> Any:
            clock[0] += timedelta(minutes=10)
            return {**answer(request), "ResponseMetadata": {}}

        bucket.s3.answer = slow
        bucket.poll()
        assert bucket.source.now == int(NOW.timestamp())

    @pytest.mark.parametrize("keys", [["d/00005"], ["d/00250", "d/00249"]])
    def test_a_range_that_shows_what_is_not_its_own_is_refused(self, keys):
        """As a store that ignores StartAfter would have it."""
        bucket = Bucket(names(500))
        bucket.poll()
        answer = bucket.s3.answer
        bucket.s3.answer = lambda request: (
            answer(request) if "StartAfter" not in request else {**answer(request), "Contents": rows(keys)}
        )
        with pytest.raises(UnusableListing):
            bucket.poll()

    def test_a_poll_that_breaks_off_leaves_the_next_one_as_it_was(self):
        bucket = Bucket(names(500))
        bucket.poll()
        answer = bucket.s3.answer
        bucket.s3.answer = lambda request: {**answer(request), "IsTruncated": True, "NextContinuationToken": None}
        with pytest.raises(IncompleteListing):
            bucket.poll()
        bucket.s3.answer = answer
        assert sorted(bucket.poll()) == names(500)
        assert max(bucket.batches) == WIDTH


def rows(keys: list[str]) -> list[dict[str, Any]]:
    return [{"Key": key, "LastModified": NOW, "Size": 1} for key in keys]


def key_of(row: Any) -> str:
    return row.key


def server(**changes: Any) -> MemorySftp:
    return MemorySftp(now=NOW.timestamp(), **changes)


def answer_with(files: MemorySftp, change: Any) -> None:
    """Let ``change`` see each answer, and return another."""
    answer = files.answer
    files.answer = lambda request: change(request, answer(request))


class TestSftpSource:
    """How a feed lists a server."""

    def test_it_hands_over_each_folders_whole_files_and_half_written_ones_by_their_later_names(self):
        files, found = server(), []
        for name in ("p/b/1", "p/a/2", "p/a/1", "p/a/3.part"):
            files.write(f"d/{name}")
        files.run(
            SftpSource(lambda: files.now).list(UNDER, lambda *rows: found.append([[*map(key_of, one)] for one in rows]))
        )
        assert sorted(each for each in found if any(each)) == [
            [["d/p/a/1", "d/p/a/2"], ["d/p/a/3"]],
            [["d/p/b/1"], []],
        ]

    def test_an_obstacle_ends_the_poll(self):
        files = server()
        files.write("d/p/a/1")
        answer_with(
            files,
            lambda request, found: (
                [each._replace(type=EntryType.UNKNOWN) for each in found]
                if isinstance(request, ListFolder)
                else found and found._replace(type=EntryType.UNKNOWN)
                if isinstance(request, Stat)
                else found
            ),
        )
        with pytest.raises(Obstacle, match="does not report which entries are folders"):
            files.run(SftpSource(lambda: files.now).list(UNDER, lambda *rows: None))

    def test_a_first_folder_that_is_not_there_is_a_mistake_at_first_and_an_obstacle_later(self):
        files, target = server(folders=()), expand("d/p/", {})
        source = SftpSource(lambda: files.now)
        with pytest.raises(NoSuchRoot):
            files.run(source.list(target, lambda *rows: None))
        files.write("d/p/a/1")
        files.run(source.list(target, lambda *rows: None))
        files.files.clear()
        with pytest.raises(Obstacle, match="no folder d/ any more"):
            files.run(source.list(target, lambda *rows: None))

    def test_folders_are_listed_side_by_side(self):
        files = server()
        for patient in range(100):
            files.write(f"d/p/{patient:03}/deep/1")
        files.run(SftpSource(lambda: files.now).list(UNDER, lambda *rows: None))
        assert len([each for each in files.requests if isinstance(each, ListFolder)]) == 202
        assert max(files.batches) == 32
        assert len(files.batches) <= 20
