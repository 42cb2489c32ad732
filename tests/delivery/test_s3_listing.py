"""Which listings a poke makes in a bucket, and what it does with their pages; driven by hand and in memory."""

from __future__ import annotations

import math
import random
from datetime import datetime, timedelta, timezone

import pytest
from helpers.stores import MemoryS3, Poked, poke, run
from helpers.support import Bucket as RealBucket
from helpers.support import s3_client

from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient
from airflow_provider_healthex.delivery.key_ranges import KeyRange
from airflow_provider_healthex.delivery.plan import alone
from airflow_provider_healthex.delivery.s3_listing import WIDTH, IncompleteListing, S3Listing, scan, scan_all
from airflow_provider_healthex.exceptions import HealthExConfigurationError

REQUESTED = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
NOW = REQUESTED + timedelta(seconds=60)
DATE = "Sun, 22 Nov 2026 17:41:05 GMT"


def page(
    *keys: str, date: str | None = DATE, token: str | None = None, modified: datetime = REQUESTED, size: int = 7
) -> dict:
    """Write a page as boto3 and aiobotocore give it."""
    headers = {} if date is None else {"date": date}
    answer = {"ResponseMetadata": {"HTTPHeaders": headers}, "IsTruncated": token is not None, "KeyCount": len(keys)}
    if keys:
        answer["Contents"] = [{"Key": k, "LastModified": modified, "Size": size, "ETag": '"e"'} for k in keys]
    if token:
        answer["NextContinuationToken"] = token
    return answer


def expected(
    *paths: str, wildcard: bool = False, requested_at: datetime = REQUESTED, quiet_period: float = 0, **rule
) -> Expectation:
    patient = Patient(None, requested_at)
    return Expectation(paths, {}, (patient,), ArrivalRule(quiet_period=quiet_period, **rule), wildcard)


def wrong_clock() -> datetime:
    """Return a local clock by which everything would have settled."""
    return NOW + timedelta(days=1)


def drive(expectation: Expectation, pages: list[dict], clock=wrong_clock) -> tuple[list[dict], Poked]:
    """Answer each request with the next page, and return the requests and what was found."""
    answers, requests = iter(pages), []
    wait = ArrivalWait(expectation, lambda *arguments: S3Listing(*arguments, clock=clock))

    def answer(request: dict) -> dict:
        requests.append(request)
        return next(answers)

    found = poke(wait, lambda plan: run(plan, answer))
    assert not list(answers), "a page was not requested"
    return requests, found


class TestRequests:
    def test_a_prefix_is_listed(self):
        requests, found = drive(expected("d/p/"), [page("d/p/a")])
        assert requests == [{"Prefix": "d/p/"}]
        assert found.waiting is None
        assert [(row.key, row.last_modified, row.size, row.etag) for row in found.objects[0]] == [
            ("d/p/a", REQUESTED, 7, '"e"')
        ]

    def test_a_glob_is_listed_from_its_literal_start(self):
        requests, found = drive(expected("d/p/x*.json", wildcard=True), [page("d/p/x1.json", "d/p/x2.xml")])
        assert requests == [{"Prefix": "d/p/x"}]
        assert found.keys == ["d/p/x1.json"]

    def test_a_glob_that_starts_with_a_star_lists_everything(self):
        requests, found = drive(expected("*/x.json", wildcard=True), [page("a/x.json", "b/y.json")])
        assert requests == [{"Prefix": ""}]
        assert found.keys == ["a/x.json"]

    def test_for_one_key_one_row_is_requested(self):
        requests, found = drive(expected("d/p.json"), [page("d/p.json", token="more")])
        assert requests == [{"Prefix": "d/p.json", "MaxKeys": 1}]
        assert found.waiting is None

    def test_a_longer_key_is_not_the_key(self):
        _, found = drive(expected("d/p.json"), [page("d/p.json.part")])
        assert found.reason == "no objects at d/p.json"

    def test_pages_are_continued_to_the_last_and_their_objects_add_up(self):
        pages = [page("d/1", token="t1"), page("d/2", "d/3", token="t2"), page("d/4")]
        requests, found = drive(expected("d/"), pages)
        assert requests == [
            {"Prefix": "d/"},
            {"Prefix": "d/", "ContinuationToken": "t1"},
            {"Prefix": "d/", "ContinuationToken": "t2"},
        ]
        assert found.keys == ["d/1", "d/2", "d/3", "d/4"]

    def test_a_page_without_objects_is_not_the_end(self):
        requests, found = drive(expected("d/"), [page(token="t1"), page("d/1")])
        assert requests[1:] == [{"Prefix": "d/", "ContinuationToken": "t1"}]
        assert found.waiting is None

    def test_an_empty_listing_is_waited_on(self):
        _, found = drive(expected("d/"), [page()])
        assert found.reason == "no objects under d/"

    @pytest.mark.parametrize(
        ("pages", "seconds", "arrived"),
        [
            (2, 1, False),  # written while the pages were listed, as an object before it may be
            (2, 0, False),  # or in the very second
            (2, -1, True),
            (1, 0, True),  # a page shows one moment
        ],
    )
    def test_a_marker_counts_when_what_was_written_before_it_is_listed_for_sure(self, pages, seconds, arrived):
        """Otherwise an object that was written behind the first page would be missing in the result."""
        marker = page("d/_OK", modified=NOW + timedelta(seconds=seconds))
        first = page("d/1", token="t")
        listed = (
            [{**first, **marker, "Contents": first["Contents"] + marker["Contents"]}] if pages == 1 else [first, marker]
        )
        _, found = drive(expected("d/", marker="_OK"), listed)
        assert (found.waiting is None) is arrived

    def test_every_path_is_listed_from_its_start_side_by_side(self):
        """And by no more than its own prefix: a policy may grant no other."""
        pages = [page("a/1", token="t"), page("b/1"), page("c"), page("a/2")]
        requests, found = drive(expected("a/", "b/", "c"), pages)
        assert requests == [
            {"Prefix": "a/"},
            {"Prefix": "b/"},
            {"Prefix": "c", "MaxKeys": 1},
            {"Prefix": "a/", "ContinuationToken": "t"},
        ]
        assert found.keys == ["a/1", "a/2", "b/1", "c"]

    def test_many_paths_are_not_all_listed_at_once(self):
        paths = [f"{number:02}/" for number in range(3 * WIDTH)]
        plan = ArrivalWait(expected(*paths), S3Listing).poke()
        assert len(next(plan)) == WIDTH
        assert len(plan.send([page(f"{path}1") for path in paths[:WIDTH]])) == WIDTH

    @pytest.mark.parametrize("paths", [("d/", "d/p/"), ("d/p/", "d/"), ("d/", "d/")])
    def test_where_paths_overlap_an_object_is_one(self, paths):
        requests, found = drive(expected(*paths, min_objects=2), [page("d/p/1")])
        assert requests == [{"Prefix": "d/"}]
        assert found.reason == "1 of at least 2 fresh objects under " + paths[0]


class TestClock:
    quiet = expected("d/", quiet_period=300)
    settling = "1 fresh object, settling: 240 s of 300 s left"

    def test_it_is_the_storages(self):
        _, found = drive(self.quiet, [page("d/1")])
        assert found.reason == self.settling

    def test_it_is_that_of_the_first_page(self):
        """A later one would let objects settle while the listing is still read."""
        pages = [page("d/1", token="t"), page("d/2", date="Sun, 22 Nov 2026 23:00:00 GMT")]
        _, found = drive(self.quiet, pages)
        assert found.reason == "2 fresh objects, settling: 240 s of 300 s left"

    @pytest.mark.parametrize("order", [1, -1])
    def test_it_is_the_earliest_of_several_paths(self, order):
        both = expected("d/", "e/", quiet_period=300)
        dates = [DATE, "Sun, 22 Nov 2026 23:00:00 GMT"][::order]
        _, found = drive(both, [page("d/1", date=dates[0]), page("e/1", date=dates[1])])
        assert found.reason == "2 fresh objects, settling: 240 s of 300 s left"

    @pytest.mark.parametrize("date", [DATE, "Sun, 22 Nov 2026 18:41:05 +0100", "Sun, 22 Nov 2026 17:41:05 -0000"])
    def test_a_date_is_read_with_any_time_zone(self, date):
        _, found = drive(self.quiet, [page("d/1", date=date)])
        assert found.reason == self.settling

    @pytest.mark.parametrize(
        "date",
        [
            *(None, "", " ", "now", "2026-11-22T17:41:05Z", "Sun, 99 Nov 2026 17:41:05 GMT"),
            *("Sun, 22 Nov 2026 17:99:05 GMT", "Sun, 22 Nov 99999999999999999999 17:41:05 GMT"),
            "Sun, 22 Nov 2026 17:41:05 +9999",
        ],
    )
    def test_where_a_storage_reports_none_that_can_be_read_it_is_the_local_one(self, date):
        clock = iter([NOW]).__next__
        _, found = drive(self.quiet, [page("d/1", date=date)], clock)
        assert found.reason == self.settling

    def test_where_a_storage_reports_none_it_is_the_local_one_before_the_first_request(self):
        """After a listing of minutes, an object that was written meanwhile would seem to have settled."""
        clock = [NOW]

        def answer(request: dict) -> dict:
            clock[0] += timedelta(minutes=10)
            return page("d/1", date=None)

        wait = ArrivalWait(self.quiet, lambda *arguments: S3Listing(*arguments, clock=lambda: clock[0]))
        assert poke(wait, lambda plan: run(plan, answer)).reason == self.settling

    def test_an_answer_without_metadata_is_no_error(self):
        bare = {"Contents": [{"Key": "d/1", "LastModified": REQUESTED, "Size": 1}]}
        _, found = drive(expected("d/"), [bare], lambda: NOW)
        assert found.objects[0][0].etag == ""

    def test_the_local_clock_is_utcs(self):
        yesterday = datetime.now(timezone.utc) - timedelta(days=1)
        wait = ArrivalWait(expected("d/", requested_at=yesterday, quiet_period=3600), S3Listing)
        found = poke(wait, lambda plan: run(plan, lambda request: page("d/1", date=None, modified=yesterday)))
        assert found.waiting is None


def walk(storage: MemoryS3, prefixes: list[str], exact: bool = False) -> dict[str, list[str]]:
    """Return the keys that each key range was given."""
    given: dict[str, list[str]] = {prefix: [] for prefix in prefixes}
    some = [KeyRange(prefix, exact, number) for number, prefix in enumerate(prefixes)]
    storage.run(alone(scan(some, lambda patient, rows: given[prefixes[patient]].extend(row.key for row in rows))))
    return given


def storage(*keys: str, page: int = 1_000) -> MemoryS3:
    return MemoryS3(dict.fromkeys(keys, NOW), NOW, page)


def matching(storage: MemoryS3, prefixes: list[str], exact: bool = False) -> dict[str, list[str]]:
    match = str.__eq__ if exact else str.startswith
    return {prefix: [key for key in sorted(storage.objects) if match(key, prefix)] for prefix in prefixes}


def bound(sizes: list[int], total: int, page: int = 1_000) -> int:
    """Return the bound that counts a full last page as the last."""
    return min(math.ceil(total / page), sum(max(1, math.ceil(size / page)) for size in sizes)) + 1


def promised(sizes: list[int], total: int, page: int = 1_000) -> int:
    """Return what the module promises."""
    return min(total // page + 1, sum(size // page + 1 for size in sizes))


class TestWhoGetsWhat:
    @pytest.mark.parametrize(
        ("keys", "prefixes"),
        [
            ([], ["d/a/"]),
            (["d/a/1"], ["d/a/"]),
            (["d/a/1", "d/b/1"], ["d/b/", "d/a/"]),
            (["d/a/", "d/a/1"], ["d/a/"]),
            # "-" and "." sort before "/", "0" behind it.
            (["d/a-b/1", "d/a/1", "d/a0/1", "d/a.b/1"], ["d/a/", "d/a-b/"]),
            (["d/a-b/1", "d/a/1", "d/a0/1"], ["d/a0/", "d/a/"]),
            (["d/\uffff/1", "d/\U0001f600/1", "d/z/1"], ["d/\uffff/", "d/\U0001f600/"]),
            (["d/é/1", "d/e\u0301/1"], ["d/é/", "d/e\u0301/"]),
            (["other/a/1", "zzz"], ["d/a/"]),
        ],
    )
    @pytest.mark.parametrize("page", [1, 2, 1_000])
    def test_a_key_range_gets_its_keys_and_no_others(self, keys, prefixes, page):
        s3 = storage(*keys, page=page)
        assert walk(s3, prefixes) == matching(s3, prefixes)

    @pytest.mark.parametrize("page", [1, 2, 1_000])
    def test_one_key_is_told_from_a_longer_one(self, page):
        s3 = storage("d/a.json", "d/a.json.part", "d/b.json.part", "d/c.json", page=page)
        prefixes = ["d/a.json", "d/b.json", "d/c.json"]
        assert walk(s3, prefixes, exact=True) == matching(s3, prefixes, exact=True)

    def test_no_key_ranges_need_no_request(self):
        s3 = storage("a")
        assert walk(s3, []) == {}
        assert s3.requests == []

    def test_the_clock_is_the_first_pages(self):
        s3 = storage("d/a/1")
        assert s3.run(alone(scan([KeyRange("d/a/", False, 0)], lambda patient, rows: None))) == NOW

    def test_a_page_without_rows_is_not_the_end(self):
        steps = scan([KeyRange("d/a/", False, 0)], lambda patient, rows: None)
        assert next(steps) == {"Prefix": "d/a/"}
        again = steps.send({"IsTruncated": True, "NextContinuationToken": "t"})
        assert again == {"Prefix": "d/a/", "ContinuationToken": "t"}

    @pytest.mark.parametrize("walker", [scan, scan_all])
    @pytest.mark.parametrize(
        ("pages", "problem"),
        [
            (["d/b/9"], None),
            (["d/b/9", "d/b/1"], "order"),
            (["d/b/1 d/b/3 d/b/2"], "order"),
            (["d/b/2 d/b/1"], "order"),
            (["d/b/1 d/b/1"], "twice"),
            (["d/b/1", "d/b/1"], "twice"),
            (["d/b/1 d/c/1"], "outside"),
        ],
    )
    def test_a_listing_out_of_order_or_of_another_prefix_is_refused(self, walker, pages, problem):
        given = []
        steps = start(walker, given)
        if problem is None:
            steps.send(answer(pages[0], token="1"))
            return
        with pytest.raises(HealthExConfigurationError, match=problem):
            send(steps, [answer(keys, token=str(number)) for number, keys in enumerate(pages)])
        assert len(given) <= len(pages) - 1, "rows of the page that is wrong were handed out"

    @pytest.mark.parametrize("walker", [scan, scan_all])
    @pytest.mark.parametrize("tokens", [["t", "t"], ["t", "u", "t"], [""], [str(n) for n in range(200)]])
    def test_a_listing_without_a_next_page_ends(self, walker, tokens):
        steps = start(walker, [])
        with pytest.raises(IncompleteListing):
            send(steps, [answer("", token=token) for token in tokens])

    @pytest.mark.parametrize("field", ["Key", "LastModified", "Size"])
    @pytest.mark.parametrize("value", [None, "text", 7, b"d/b/1", []])
    def test_a_row_with_a_field_of_another_type_is_refused(self, field, value):
        whole = {"Key": "d/b/1", "LastModified": NOW, "Size": 1}
        if type(value) is type(whole[field]):
            pytest.skip("it is of that type")
        steps = start(scan_all, [])
        with pytest.raises(HealthExConfigurationError, match=f"row's {field} is|has no {field}|outside the prefix"):
            steps.send({"Contents": [{**whole, field: value}]})

    @pytest.mark.parametrize("row", [None, "d/b/1", 7, [], {}, {"Key": "d/b/1"}])
    def test_a_row_of_another_form_is_refused(self, row):
        with pytest.raises(HealthExConfigurationError, match="a row has no"):
            start(scan_all, []).send({"Contents": [row]})

    @pytest.mark.parametrize("walker", [scan, scan_all])
    def test_a_time_without_a_time_zone_is_refused(self, walker):
        row = {"Key": "d/b/1", "LastModified": NOW.replace(tzinfo=None), "Size": 1}
        with pytest.raises(HealthExConfigurationError, match="no time zone"):
            start(walker, []).send({"Contents": [row]})


def start(walker, given: list):
    """Start a walk of "d/b/", up to its first request."""
    if walker is scan_all:
        steps = scan_all("d/b/", given.extend)
    else:
        steps = scan([KeyRange("d/b/", False, 0)], lambda patient, rows: given.extend(rows))
    next(steps)
    return steps


def send(steps, pages: list[dict]) -> None:
    for page in pages:
        steps.send(page)


def answer(keys: str, token: str) -> dict:
    rows = [{"Key": key, "LastModified": NOW, "Size": 1} for key in keys.split()]
    return {"IsTruncated": True, "Contents": rows, "NextContinuationToken": token}


class TestNumberOfRequests:
    def test_small_deliveries_side_by_side_share_their_pages(self):
        s3 = storage(*(f"d/{patient:04}/{n}" for patient in range(100) for n in range(25)))
        walk(s3, [f"d/{patient:04}/" for patient in range(100)])
        assert len(s3.requests) == 3

    def test_a_single_missing_patient_costs_one_request_among_many_objects(self):
        s3 = storage(*(f"d/{patient:04}/{n}" for patient in range(1_000) for n in range(50)))
        assert walk(s3, ["d/0500/"])["d/0500/"] == [f"d/0500/{n}" for n in sorted(range(50), key=str)]
        assert s3.requests == [{"Prefix": "d/0500/"}]

    def test_what_lies_between_is_skipped(self):
        s3 = storage(*(f"d/{patient:04}/{n}" for patient in range(1_000) for n in range(50)))
        walk(s3, ["d/0100/", "d/0900/"])
        assert len(s3.requests) == 2

    def test_a_key_that_sorts_just_before_costs_nothing(self):
        s3 = storage(*(f"d/a-b/{n}" for n in range(5_000)), "d/a/1", *(f"d/a0/{n}" for n in range(5_000)), "d/b/1")
        assert walk(s3, ["d/a/", "d/b/"]) == {"d/a/": ["d/a/1"], "d/b/": ["d/b/1"]}
        assert len(s3.requests) == 2


def layout(rng: random.Random, page: int) -> tuple[MemoryS3, list[str]]:
    """Draw a bucket in which sizes sit on pages' edges, ids are each other's beginnings, and others lie between."""
    alphabet = rng.choice(["ab", "a-./0", "a\u00e9\uffff\U0001f600"])
    ids = list({"".join(rng.choices(alphabet, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 40))})
    edges = [0, 0, 1, 2, page - 1, page, page + 1, 2 * page, 3 * page + 1, rng.randint(0, 4 * page)]
    weights = [rng.random() ** 3 for _ in edges]
    keys = {f"d/{one.replace('/', '_')}/{n:05}" for one in ids for n in range(rng.choices(edges, weights)[0])}
    missing = rng.sample(ids, rng.randint(1, len(ids)))
    return MemoryS3(dict.fromkeys(keys, NOW), NOW, page), sorted({f"d/{one.replace('/', '_')}/" for one in missing})


@pytest.mark.parametrize("seed", range(400))
def test_in_any_layout_everything_is_seen_within_the_bound(seed):
    rng = random.Random(seed)
    page = rng.choice([2, 3, 10])
    s3, prefixes = layout(rng, page)
    given = walk(s3, prefixes)
    assert given == {prefix: sorted(keys, key=str.encode) for prefix, keys in matching(s3, prefixes).items()}
    sizes = [len(keys) for keys in given.values()]
    assert len(s3.requests) <= promised(sizes, len(s3.objects), page)
    full = sum(1 for size in sizes if size and size % page == 0)
    assert len(s3.requests) <= bound(sizes, len(s3.objects), page) + max(0, full - 1)
    if full <= 1:
        assert len(s3.requests) <= bound(sizes, len(s3.objects), page)


def test_pages_that_are_filled_to_the_last_key_are_the_one_excess():
    """Each such page doesn't show that nothing follows; where others do, by the thousand, a request is in vain."""
    keys = [f"d/{patient}/{n:04}" for patient in range(6) for n in range(1_000)]
    others = [f"d/{patient}x/{n:04}" for patient in range(6) for n in range(3_000)]
    s3 = storage(*keys, *others)
    walk(s3, [f"d/{patient}/" for patient in range(6)])
    assert len(s3.requests) == 6 + 5
    assert bound([1_000] * 6, 24_000) == 7


def test_a_full_scan_pages_through_all():
    s3, keys = storage(*(f"d/{n:04}" for n in range(2_500))), []
    assert s3.run(alone(scan_all("d/", lambda rows: keys.extend(row.key for row in rows)))) == NOW
    assert keys == sorted(s3.objects)
    assert len(s3.requests) == 3


def test_a_real_server_lists_as_the_one_in_memory(s3_endpoint):
    bucket = RealBucket("skip-scan", s3_endpoint, s3_client(s3_endpoint))
    bucket.client.create_bucket(Bucket=bucket.name)
    keys = [f"d/{patient}/{n:03}" for patient in ("a", "a-b", "a.b", "a0", "é", "\U0001f600") for n in range(30)]
    for key in keys:
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"1")
    prefixes = ["d/a/", "d/a0/", "d/\U0001f600/", "d/nobody/"]
    memory = storage(*keys, page=20)
    given = walk(memory, prefixes)

    real: dict[str, list[str]] = {prefix: [] for prefix in prefixes}
    steps = scan(
        [KeyRange(prefix, False, number) for number, prefix in enumerate(prefixes)],
        lambda patient, rows: real[prefixes[patient]].extend(row.key for row in rows),
    )
    requests = []

    def list_objects(request: dict) -> dict:
        requests.append(request)
        return bucket.client.list_objects_v2(Bucket=bucket.name, MaxKeys=20, **request)

    run(alone(steps), list_objects)
    assert real == given
    assert [_without_token(one) for one in requests] == [_without_token(one) for one in memory.requests]


def _without_token(request: dict) -> dict:
    return {**request, "ContinuationToken": "…"} if "ContinuationToken" in request else request
