"""What pokes cost by what the pokes before them showed, and that nothing else depends on it."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone

import pytest
from helpers.stores import MemoryS3
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient
from airflow_provider_healthex.delivery.key_ranges import KeyRange
from airflow_provider_healthex.delivery.plan import alone
from airflow_provider_healthex.delivery.s3_groups import PAGE, WIDTH, Counts, Latency, Layout
from airflow_provider_healthex.delivery.s3_listing import S3Listing, scan

REQUESTED = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
NOW = REQUESTED + timedelta(hours=1)
STALE, FRESH = REQUESTED - timedelta(days=3), REQUESTED + timedelta(minutes=1)


class Priced(Latency):
    """A request costs as much as that many rows, however long it takes."""

    request_in_rows = 0.0

    def __init__(self, request: float) -> None:
        self.request_in_rows = request

    def note(self, requests: int, rows: int, seconds: float) -> None:
        pass


def waiting_for(ids: list[str], request: float = 500) -> ArrivalWait:
    patients = tuple(Patient(one, REQUESTED) for one in ids)
    wait = ArrivalWait(Expectation(("d/{healthexPatientId}/",), {}, patients, ArrivalRule(quiet_period=0)), S3Listing)
    wait.listing.latency = Priced(request)
    return wait


def one_by_one(s3: MemoryS3, ids: list[str]) -> int:
    """Return the requests that the patients need when each is listed alone."""
    sizes = (sum(1 for key in s3.objects if key.startswith(f"d/{one}/")) for one in ids)
    return sum(size // s3.page + 1 for size in sizes)


def keys_of(one: str, count: int, modified: datetime = STALE) -> dict[str, datetime]:
    return {f"d/{one}/{number:05}": modified for number in range(count)}


def many(count: int, objects: int) -> tuple[list[str], MemoryS3]:
    ids = [f"{number:04}" for number in range(count)]
    return ids, MemoryS3({key: value for one in ids for key, value in keys_of(one, objects).items()}, NOW)


class TestPlan:
    def test_a_first_poke_walks_all_in_one_range(self):
        plan = waiting_for([f"{number:04}" for number in range(50)]).poke()
        assert next(plan) == [{"Prefix": "d/00", "StartAfter": "d/0000.\U0010ffff"}]

    def test_where_all_are_missing_ranges_are_listed_side_by_side(self):
        ids, s3 = many(1_000, 100)
        wait = waiting_for(ids)
        s3.poke(wait)
        first = len(s3.requests)
        s3.requests.clear()
        assert len(next(wait.poke())) == WIDTH
        s3.poke(wait)
        assert len(s3.requests) <= 1.2 * first

    def test_a_few_missing_are_listed_one_by_one_and_together(self):
        ids, s3 = many(1_000, 100)
        wait = waiting_for(ids)
        s3.poke(wait)
        missing = ids[5::250]
        s3.objects.update({key: FRESH for key in s3.objects if key.split("/")[1] not in missing})
        s3.poke(wait)
        assert next(wait.poke()) == [{"Prefix": f"d/{one}/"} for one in missing]

    def test_close_and_distant_ones_are_listed_each_in_their_way(self):
        ids, s3 = many(1_000, 10)
        wait = waiting_for(ids)
        s3.poke(wait)
        missing = {*ids[100:150], ids[500], ids[900]}
        s3.objects.update({key: FRESH for key in s3.objects if key.split("/")[1] not in missing})
        s3.poke(wait)
        assert next(wait.poke()) == [
            {"Prefix": "d/01", "StartAfter": "d/0100.\U0010ffff"},
            {"Prefix": "d/0500/"},
            {"Prefix": "d/0900/"},
        ]

    def test_what_it_remembers_is_two_numbers_a_patient(self):
        layout = Layout(KeyRange(f"d/{number:05}/", False, number) for number in range(10_000))
        assert layout._inside.itemsize * len(layout._inside) + layout._before.itemsize * len(layout._before) < 200_000

    @pytest.mark.parametrize("path", ["a/{healthexPatientId}/", "b/{healthexPatientId}.json"])
    def test_each_path_is_divided_by_itself(self, path):
        ids, _ = many(3, 0)
        patients = tuple(Patient(one, REQUESTED) for one in ids)
        rule = ArrivalRule(quiet_period=0)
        wait = ArrivalWait(Expectation(("c/{healthexPatientId}/", path), {}, patients, rule), S3Listing)
        s3 = MemoryS3({f"c/{ids[0]}/1": FRESH, path.format(healthexPatientId=ids[0]): FRESH}, NOW)
        for _ in range(3):
            s3.poke(wait)
        assert {request["Prefix"][:2] for request in s3.requests} == {"c/", path[:2]}


def cost(s3: MemoryS3, request: float, requests: list[dict]) -> float:
    """Return what requests cost, in rows."""
    shown = [s3.answer(dict(one)) for one in requests]
    return sum(request + len(each["Contents"]) for each in shown)


@pytest.mark.parametrize("seed", range(60))
def test_a_poke_costs_hardly_more_than_the_cheaper_of_the_two_simple_ways(seed):
    rng = random.Random(seed)
    request = rng.choice([100, 200, 500, 2_000, 5_000])
    sizes = rng.choice([[1], [10], [100], [1, 100], [0, 1, 999, 1_000, 1_001, 3_000], [50, 0, 0, 300]])
    ids = [f"{rng.randrange(16**4):04x}{number:04}" for number in range(rng.choice([2, 5, 20, 60]))]
    others = [f"{rng.randrange(16**4):04x}x{number:04}" for number in range(rng.choice([0, 30, 100]))]
    s3 = MemoryS3({k: v for one in ids + others for k, v in keys_of(one, rng.choice(sizes)).items()}, NOW)
    wait = waiting_for(ids, request)
    s3.poke(wait)
    share = rng.choice([0, 0.3, 0.9])
    arrived = {one for one in ids if rng.random() < share}
    s3.objects.update({key: FRESH for key in s3.objects if key.split("/")[1] in arrived})
    s3.poke(wait)
    s3.poke(wait)  # of the rows between those who are left, the poke before may have learnt something
    missing = [ids[index] for index in wait.missing]
    key_ranges = [KeyRange(f"d/{one}/", False, number) for number, one in enumerate(missing)]
    costs = []
    for run in (
        lambda: s3.poke(wait),
        lambda: [s3.run(alone(scan([one], lambda patient, rows: None))) for one in key_ranges],
        lambda: s3.run(alone(scan(key_ranges, lambda patient, rows: None))),
    ):
        s3.requests.clear()
        run()
        costs.append(cost(s3, request, list(s3.requests)))
    assert costs[0] <= 1.2 * min(costs[1:])


counts = st.sampled_from([0, 0, 1, 2, 3, 4, 7, 12])
ids = ["a", "a-", "ab", "b", "b.", "ba"]
#: Of each patient and of somebody else, how many objects there are at each poke.
changes = st.lists(st.tuples(*([counts] * (len(ids) + 1)), st.sets(st.sampled_from(ids))), min_size=1, max_size=6)


@given(changes, st.integers(1, 4), st.sampled_from([0.1, 3, 50]))
def test_a_bucket_that_changes_between_pokes_costs_no_patient_anything(bucket_at, page, request):
    """Whatever is remembered: all those arrive who have a fresh object, and no more requests than one by one."""
    wait, s3 = waiting_for(ids, request), MemoryS3({}, NOW, page)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("s3_groups", "s3_listing"):  # S3's pages are too large for a bucket that can be shrunk
            patch.setattr(f"airflow_provider_healthex.delivery.{module}.PAGE", page)
        arrived: set[str] = set()
        for *sizes, others, fresh in bucket_at:
            s3.objects = keys_of("aa", others)
            for one, size in zip(ids, sizes, strict=True):
                s3.objects |= keys_of(one, size, FRESH if one in fresh else STALE)
            s3._order = None
            missing = [one for one in ids if one not in arrived]
            s3.requests.clear()
            s3.poke(wait)
            assert len(s3.requests) <= one_by_one(s3, missing)
            arrived |= {one for one, size in zip(ids, sizes, strict=True) if one in fresh and size}
            assert {ids[index] for index in wait.arrived} == arrived


def test_patients_of_another_poke_are_listed_in_between():
    """As `collect` lists those who arrived."""
    ids, s3 = many(100, 30)
    wait = waiting_for(ids)
    s3.poke(wait)
    s3.objects.update({key: FRESH for key in s3.objects if key.split("/")[1] in ids[20:60]})
    s3.poke(wait)
    seen: dict[int, int] = {}
    found = s3.run(
        wait.collect(list(wait.arrived), lambda index, rows: seen.__setitem__(index, seen.get(index, 0) + len(rows)))
    )
    assert seen == dict.fromkeys(range(20, 60), 30)
    assert list(found) == list(range(20, 60))
    s3.objects.update(dict.fromkeys(s3.objects, FRESH))
    assert s3.poke(wait).waiting is None


class TestLatency:
    def test_a_request_without_any_costs_a_few_hundred_rows(self):
        assert 100 < Latency().request_in_rows < 500

    def test_it_is_shared_by_what_is_listed_side_by_side(self):
        slow = Latency()
        slow.note(1, PAGE, 0.5)
        assert slow.request_in_rows == pytest.approx(0.5 / WIDTH / 8e-6, rel=0.2)

    def test_it_follows_what_is_measured(self):
        latency = Latency()
        latency.note(8, 8 * PAGE, 0.0)
        fast = latency.request_in_rows
        for _ in range(20):
            latency.note(8, 8 * PAGE, 1.0)
        assert latency.request_in_rows > 10 * fast

    def test_a_poke_measures_it(self):
        ids, s3 = many(3, 1)
        wait = waiting_for(ids)
        noted = []
        wait.listing.latency = Latency()
        wait.listing.latency.note = lambda *arguments: noted.append(arguments)
        s3.poke(wait)
        ((requests, rows, seconds),) = noted
        assert (requests, rows) == (1, 3)
        assert seconds > 0


def test_rows_are_counted_where_they_lie():
    keys = ["d/0/1", "d/a/1", "d/a/2", "d/b/1", "d/c/1", "d/d/1"]
    s3 = MemoryS3(dict.fromkeys(keys, NOW), NOW, 100)
    seen = Counts.of(3)
    s3.run(alone(scan([KeyRange(f"d/{one}/", False, 0) for one in "acx"], lambda patient, rows: None, seen)))
    assert (seen.inside, seen.before, seen.skipped) == ([2, 1, 0], [0, 1, 1, 0], set())
