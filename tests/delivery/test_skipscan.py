"""Walking stretches of keys: every row reaches its owner, at no more requests than are promised."""

from __future__ import annotations

import math
import random
from datetime import datetime, timezone

import pytest
from airflow_provider_healthex.delivery.listing import IncompleteListing
from airflow_provider_healthex.delivery.skipscan import Span, are_disjoint, scan_all, skip_scan
from delivery.s3_lists import MemoryS3
from support import Bucket as RealBucket
from support import s3_client

from airflow_provider_healthex.exceptions import HealthExConfigurationError

NOW = datetime(2026, 11, 22, 17, 41, 5, tzinfo=timezone.utc)


def walk(storage: MemoryS3, prefixes: list[str], exact: bool = False) -> dict[str, list[str]]:
    """Return the keys that each span was given."""
    given: dict[str, list[str]] = {prefix: [] for prefix in prefixes}
    spans = [Span(prefix, exact, number) for number, prefix in enumerate(prefixes)]
    storage.drive(skip_scan(spans, lambda owner, rows: given[prefixes[owner]].extend(row["Key"] for row in rows)))
    return given


def storage(*keys: str, page: int = 1_000) -> MemoryS3:
    return MemoryS3(dict.fromkeys(keys, NOW), NOW, page)


def expected(storage: MemoryS3, prefixes: list[str], exact: bool = False) -> dict[str, list[str]]:
    match = str.__eq__ if exact else str.startswith
    return {prefix: [key for key in sorted(storage.objects) if match(key, prefix)] for prefix in prefixes}


def bound(sizes: list[int], total: int, page: int = 1_000) -> int:
    """Return what the issue asks for."""
    return min(math.ceil(total / page), sum(max(1, math.ceil(size / page)) for size in sizes)) + 1


def proved(sizes: list[int], total: int, page: int = 1_000) -> int:
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
    def test_a_span_gets_its_keys_and_no_others(self, keys, prefixes, page):
        s3 = storage(*keys, page=page)
        assert walk(s3, prefixes) == expected(s3, prefixes)

    @pytest.mark.parametrize("page", [1, 2, 1_000])
    def test_one_key_is_told_from_its_longer_namesake(self, page):
        s3 = storage("d/a.json", "d/a.json.part", "d/b.json.part", "d/c.json", page=page)
        prefixes = ["d/a.json", "d/b.json", "d/c.json"]
        assert walk(s3, prefixes, exact=True) == expected(s3, prefixes, exact=True)

    def test_no_spans_ask_nothing(self):
        s3 = storage("a")
        assert walk(s3, []) == {}
        assert s3.requests == []

    def test_the_clock_is_the_first_pages(self):
        s3 = storage("d/a/1")
        assert s3.drive(skip_scan([Span("d/a/", False, 0)], lambda owner, rows: None)) == NOW

    def test_a_page_without_rows_is_no_end(self):
        steps = skip_scan([Span("d/a/", False, 0)], lambda owner, rows: None)
        assert next(steps) == {"Prefix": "d/a/"}
        again = steps.send({"IsTruncated": True, "NextContinuationToken": "t"})
        assert again == {"Prefix": "d/a/", "ContinuationToken": "t"}

    @pytest.mark.parametrize("scan", [skip_scan, scan_all])
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
    def test_a_listing_out_of_order_or_of_strangers_is_refused(self, scan, pages, problem):
        given = []
        steps = (
            scan_all("d/b/", given.extend) if scan is scan_all else skip_scan(SPAN, lambda owner, r: given.extend(r))
        )
        next(steps)
        if problem is None:
            steps.send(answer(pages[0], token="1"))
            return
        with pytest.raises(HealthExConfigurationError, match=problem):
            send(steps, [answer(keys, token=str(number)) for number, keys in enumerate(pages)])
        assert len(given) <= len(pages) - 1, "rows of the page that is wrong were handed out"

    @pytest.mark.parametrize("scan", [skip_scan, scan_all])
    @pytest.mark.parametrize("tokens", [["t", "t"], ["t", "u", "t"], [""], [str(n) for n in range(200)]])
    def test_a_listing_without_a_way_on_ends(self, scan, tokens):
        steps = scan_all("d/b/", list) if scan is scan_all else skip_scan(SPAN, lambda owner, rows: None)
        next(steps)
        with pytest.raises(IncompleteListing):
            send(steps, [answer("", token=token) for token in tokens])

    @pytest.mark.parametrize("field", ["Key", "LastModified", "Size"])
    @pytest.mark.parametrize("value", [None, "text", 7, b"d/b/1", []])
    def test_a_row_with_a_field_of_another_kind_is_refused(self, field, value):
        whole = {"Key": "d/b/1", "LastModified": NOW, "Size": 1}
        if type(value) is type(whole[field]):
            pytest.skip("it is of that kind")
        steps = scan_all("d/b/", list)
        next(steps)
        with pytest.raises(HealthExConfigurationError, match=f"row's {field} is|has no {field}|outside the prefix"):
            steps.send({"Contents": [{**whole, field: value}]})


SPAN = [Span("d/b/", False, 0)]


def send(steps, pages: list[dict]) -> None:
    for page in pages:
        steps.send(page)


def answer(keys: str, token: str) -> dict:
    rows = [{"Key": key, "LastModified": NOW, "Size": 1} for key in keys.split()]
    return {"IsTruncated": True, "Contents": rows, "NextContinuationToken": token}


@pytest.mark.parametrize(
    ("prefixes", "exact", "disjoint"),
    [
        ([], False, True),
        (["d/a/", "d/a-b/"], False, True),
        (["d/a-", "d/a-b-"], False, False),
        (["d/a", "d/a.b"], True, True),
        (["d/a/", "d/a/"], False, False),
        ([""], False, False),
    ],
)
def test_spans_that_share_keys_are_told(prefixes, exact, disjoint):
    assert are_disjoint(Span(prefix, exact, 0) for prefix in prefixes) is disjoint


class TestRequests:
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

    def test_a_namesake_that_sorts_just_before_costs_nothing(self):
        s3 = storage(*(f"d/a-b/{n}" for n in range(5_000)), "d/a/1", *(f"d/a0/{n}" for n in range(5_000)), "d/b/1")
        assert walk(s3, ["d/a/", "d/b/"]) == {"d/a/": ["d/a/1"], "d/b/": ["d/b/1"]}
        assert len(s3.requests) == 2


def layout(rng: random.Random, page: int) -> tuple[MemoryS3, list[str]]:
    """Draw a bucket in which sizes sit on pages' edges, ids are each other's beginnings, and strangers between."""
    alphabet = rng.choice(["ab", "a-./0", "a\u00e9\uffff\U0001f600"])
    ids = list({"".join(rng.choices(alphabet, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 40))})
    edges = [0, 0, 1, 2, page - 1, page, page + 1, 2 * page, 3 * page + 1, rng.randint(0, 4 * page)]
    weights = [rng.random() ** 3 for _ in edges]
    keys = {f"d/{one.replace('/', '_')}/{n:05}" for one in ids for n in range(rng.choices(edges, weights)[0])}
    missing = rng.sample(ids, rng.randint(1, len(ids)))
    return MemoryS3(dict.fromkeys(keys, NOW), NOW, page), sorted({f"d/{one.replace('/', '_')}/" for one in missing})


@pytest.mark.parametrize("seed", range(400))
def test_in_any_layout_all_is_seen_within_the_bound(seed):
    rng = random.Random(seed)
    page = rng.choice([2, 3, 10])
    s3, prefixes = layout(rng, page)
    given = walk(s3, prefixes)
    assert given == {prefix: sorted(keys, key=str.encode) for prefix, keys in expected(s3, prefixes).items()}
    sizes = [len(keys) for keys in given.values()]
    assert len(s3.requests) <= proved(sizes, len(s3.objects), page)
    full = sum(1 for size in sizes if size and size % page == 0)
    assert len(s3.requests) <= bound(sizes, len(s3.objects), page) + max(0, full - 1)
    if full <= 1:
        assert len(s3.requests) <= bound(sizes, len(s3.objects), page)


def test_pages_that_are_filled_to_the_last_key_are_the_one_excess():
    """Each such page doesn't tell that nothing follows; where strangers do, by the thousand, it is asked in vain."""
    keys = [f"d/{patient}/{n:04}" for patient in range(6) for n in range(1_000)]
    strangers = [f"d/{patient}x/{n:04}" for patient in range(6) for n in range(3_000)]
    s3 = storage(*keys, *strangers)
    walk(s3, [f"d/{patient}/" for patient in range(6)])
    assert len(s3.requests) == 6 + 5
    assert bound([1_000] * 6, 24_000) == 7


def test_a_full_scan_pages_through_all():
    s3, keys = storage(*(f"d/{n:04}" for n in range(2_500))), []
    assert s3.drive(scan_all("d/", lambda rows: keys.extend(row["Key"] for row in rows))) == NOW
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
    steps = skip_scan(
        [Span(prefix, False, number) for number, prefix in enumerate(prefixes)],
        lambda owner, rows: real[prefixes[owner]].extend(row["Key"] for row in rows),
    )
    requests = []
    try:
        request = next(steps)
        while True:
            requests.append(request)
            request = steps.send(bucket.client.list_objects_v2(Bucket=bucket.name, MaxKeys=20, **request))
    except StopIteration:
        pass
    assert real == given
    assert requests == memory.requests
