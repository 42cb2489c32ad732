"""When a delivery has arrived: every rule by its boundary, and all of them together against a plain restatement."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone

import pytest
from helpers.stores import Poked, RowsListing, poke, run

from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient, StoredObject

REQUESTED = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
VALUES = {"projectId": "project-secret"}
PATH = "d/{projectId}/{healthexPatientId}/"
ROOT = "d/project-secret/patient-secret/"


def at(seconds: float) -> datetime:
    """Return the moment so many seconds after the request."""
    return REQUESTED + timedelta(seconds=seconds)


def obj(name: str, seconds: float = 10, size: int = 1) -> StoredObject:
    return StoredObject(ROOT + name, at(seconds), size)


def expected(
    *paths: str, wildcard: bool = False, requested_at: datetime = REQUESTED, quiet_period: float = 0, **rule
) -> Expectation:
    patient = Patient("patient-secret", requested_at, "external-secret")
    return Expectation(paths or (PATH,), VALUES, (patient,), ArrivalRule(quiet_period=quiet_period, **rule), wildcard)


def decide(rows, expectation: Expectation, now: datetime) -> Poked:
    """Decide on some rows, in their order."""
    wait = ArrivalWait(expectation, lambda *_: RowsListing(rows, now))
    return poke(wait, lambda plan: run(plan, None))


def names(*arguments) -> list[str] | None:
    keys = decide(*arguments).keys
    return None if keys is None else [key.removeprefix(ROOT) for key in keys]


def reason(*arguments) -> str:
    return decide(*arguments).reason


class TestFreshness:
    def test_a_stale_object_is_not_an_arrival(self):
        assert names([obj("a", -3600)], expected(), at(3600)) is None

    def test_an_object_of_the_requests_own_second_is_fresh(self):
        assert names([obj("a", 0)], expected(clock_skew=0), at(60)) == ["a"]

    def test_an_object_of_the_second_before_is_stale(self):
        assert names([obj("a", -1)], expected(clock_skew=0), at(60)) is None

    @pytest.mark.parametrize(("seconds", "arrived"), [(-4, False), (-3, False), (-2, True), (-1, True)])
    def test_the_clock_skew_counts_to_the_second(self, seconds, arrived):
        assert (names([obj("a", seconds)], expected(clock_skew=2), at(60)) == ["a"]) is arrived

    def test_the_request_is_rounded_down_because_the_objects_times_are(self):
        within = expected(requested_at=REQUESTED.replace(microsecond=999_999), clock_skew=0)
        assert names([obj("a", 0)], within, at(60)) == ["a"]
        assert names([obj("a", -1)], within, at(60)) is None

    def test_a_request_in_another_time_zone_is_the_same_moment(self):
        tokyo = REQUESTED.astimezone(timezone(timedelta(hours=9)))
        waiting = expected(requested_at=tokyo, clock_skew=0)
        assert names([obj("old", -1), obj("new", 0)], waiting, at(60)) == ["new"]

    def test_stale_objects_beside_fresh_ones_are_ignored(self):
        assert names([obj("old", -60), obj("new")], expected(), at(60)) == ["new"]


class TestDataObjects:
    def test_nothing_is_no_arrival(self):
        assert names([], expected(), at(60)) is None

    @pytest.mark.parametrize("folder", ["", "sub/", "sub/sub/"])
    def test_a_folder_marker_is_no_object(self, folder):
        assert names([obj(folder, size=0)], expected(), at(60)) is None
        assert names([obj(folder, size=0), obj("a")], expected(), at(60)) == ["a"]

    def test_a_folder_marker_is_not_even_a_stale_object(self):
        assert reason([obj("", -60, size=0)], expected(), at(60)) == f"no objects under {PATH}"

    def test_an_empty_file_is_an_object(self):
        assert names([obj("empty.json", size=0)], expected(), at(60)) == ["empty.json"]

    def test_an_object_with_content_and_a_folders_name_is_an_object(self):
        assert names([obj("odd/", size=1)], expected(), at(60)) == ["odd/"]

    def test_a_folder_marker_does_not_prolong_the_quiet_period(self):
        rows = [obj("a", 0), obj("late/", 299, size=0)]
        assert names(rows, expected(quiet_period=300), at(300)) == ["a"]

    @pytest.mark.parametrize("other", ["x/a.json", "d/project-secret/patient-secret2/a.json"])
    def test_an_object_of_another_path_is_ignored(self, other):
        assert names([StoredObject(other, at(10), 1)], expected(), at(60)) is None

    @pytest.mark.parametrize(("count", "arrived"), [(2, False), (3, True), (4, True)])
    def test_min_objects_is_reached_by_fresh_data_objects_alone(self, count, arrived):
        rows = [obj(f"{number}") for number in range(count)] + [obj("old", -60), obj("f/", size=0)]
        assert (names(rows, expected(min_objects=3), at(60)) is not None) is arrived

    def test_an_exact_key_is_not_a_longer_one(self):
        exact = expected(PATH + "a.json")
        assert names([obj("a.json.part")], exact, at(60)) is None
        assert names([obj("a.json.part"), obj("a.json")], exact, at(60)) == ["a.json"]

    def test_a_glob_counts_what_it_matches(self):
        glob = expected(PATH + "*.json", wildcard=True)
        assert names([obj("a.xml"), obj("b/c.json")], glob, at(60)) == ["b/c.json"]

    def test_an_arrival_has_the_numbers_of_its_fresh_objects(self):
        rows = [obj("b", 20, 5), obj("a", 10, 7), obj("old", -60, 100), obj("f/", 30, 0)]
        (arrival,) = decide(rows, expected(), at(60)).arrived.values()
        assert (arrival.object_count, arrival.total_bytes) == (2, 12)
        assert (arrival.first_modified, arrival.last_modified) == (at(10), at(20))


class TestSeveralPaths:
    paths = (PATH + "a/", PATH + "b/")

    def test_each_needs_its_objects(self):
        assert names([obj("a/1")], expected(*self.paths), at(60)) is None
        assert names([obj("b/1")], expected(*self.paths), at(60)) is None
        assert names([obj("b/1"), obj("a/1")], expected(*self.paths), at(60)) == ["a/1", "b/1"]

    def test_each_needs_min_objects(self):
        rows = [obj("a/1"), obj("a/2"), obj("a/3"), obj("b/1")]
        assert names(rows, expected(*self.paths, min_objects=2), at(60)) is None
        assert names([*rows, obj("b/2")], expected(*self.paths, min_objects=2), at(60)) is not None

    def test_each_needs_its_marker(self):
        rows = [obj("a/1"), obj("b/1"), obj("a/_SUCCESS")]
        waiting = expected(*self.paths, marker="_SUCCESS")
        assert names(rows, waiting, at(60)) is None
        assert names([*rows, obj("b/_SUCCESS")], waiting, at(60)) == ["a/1", "b/1"]

    def test_the_reason_names_the_path_that_is_missing(self):
        assert reason([obj("a/1")], expected(*self.paths), at(60)) == f"no objects under {PATH}b/"

    @pytest.mark.parametrize(("there", "unmatched"), [([], (0, 1)), (["a/1"], (1,)), (["b/1"], (0,))])
    def test_those_without_any_object_are_known_by_their_positions(self, there, unmatched):
        verdict = decide([obj(name) for name in there], expected(*self.paths), at(60))
        assert verdict.waiting.unmatched == unmatched
        stale = decide([obj(name, -60) for name in there], expected(*self.paths), at(60))
        assert stale.waiting.unmatched == unmatched

    def test_the_newest_object_of_all_begins_the_quiet_period(self):
        rows = [obj("a/1", 0), obj("b/1", 100)]
        waiting = expected(*self.paths, quiet_period=300)
        assert names(rows, waiting, at(399)) is None
        assert names(rows, waiting, at(400)) == ["a/1", "b/1"]

    def test_where_they_overlap_an_object_is_of_both_and_counted_once(self):
        overlapping = expected(PATH, PATH + "a/")
        assert names([obj("1")], overlapping, at(60)) is None
        verdict = decide([obj("a/1")], overlapping, at(60))
        assert [row.key for row in verdict.objects[0]] == [ROOT + "a/1"]
        assert verdict.arrived[0].object_count == 1


class TestQuietPeriod:
    @pytest.mark.parametrize(("seconds", "arrived"), [(0, False), (299, False), (300, True), (301, True)])
    def test_it_ends_to_the_second(self, seconds, arrived):
        rows = [obj("a", -2), obj("b", 0)]
        assert (names(rows, expected(quiet_period=300), at(seconds)) is not None) is arrived

    def test_without_one_a_delivery_arrives_at_once(self):
        assert names([obj("a", 5)], expected(quiet_period=0), at(5)) == ["a"]

    def test_a_stale_object_has_no_part_in_it(self):
        assert names([obj("a", 0), obj("b", -60)], expected(quiet_period=300), at(300)) == ["a"]

    def test_an_object_from_the_storages_future_is_waited_for(self):
        verdict = reason([obj("a", 100)], expected(quiet_period=300), at(0))
        assert verdict == "1 fresh object, settling: 400 s of 300 s left"

    def test_only_the_storages_clock_counts(self):
        """The request may lie in the storage's future, and its objects still settle."""
        rows = [obj("a", -1)]
        assert names(rows, expected(quiet_period=30), at(28)) is None
        assert names(rows, expected(quiet_period=30), at(29)) == ["a"]


class TestMarker:
    waiting = expected(marker="_SUCCESS", quiet_period=3600)

    def test_it_is_required(self):
        assert names([obj("a")], self.waiting, at(99_999)) is None

    def test_it_replaces_the_quiet_period_and_is_not_counted(self):
        assert names([obj("a"), obj("_SUCCESS", size=0)], self.waiting, at(10)) == ["a"]

    def test_a_stale_one_ends_nothing(self):
        assert names([obj("a"), obj("_SUCCESS", -60)], self.waiting, at(60)) is None

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_fresh_one_counts_beside_a_stale_one(self, order):
        markers = [obj("1/_SUCCESS", -60), obj("2/_SUCCESS")][::order]
        assert names([obj("a"), *markers], self.waiting, at(60)) == ["a"]

    def test_it_alone_is_no_delivery(self):
        assert reason([obj("_SUCCESS")], self.waiting, at(60)) == f"no objects under {PATH}"

    def test_it_does_not_make_up_for_a_missing_object(self):
        waiting = expected(marker="_SUCCESS", min_objects=2)
        assert names([obj("a"), obj("_SUCCESS")], waiting, at(60)) is None

    def test_it_does_not_make_up_for_stale_objects(self):
        assert names([obj("a", -60), obj("_SUCCESS")], self.waiting, at(60)) is None

    def test_one_that_starts_with_a_dot_is_an_ending(self):
        waiting = expected(marker=".done", quiet_period=3600)
        assert names([obj("a.json"), obj("a.done")], waiting, at(60)) == ["a.json"]
        assert names([obj("a.json"), obj("a.done.json")], waiting, at(60)) is None

    def test_another_patients_ends_nothing(self):
        rows = [obj("a"), StoredObject("d/project-secret/patient-secret2/_SUCCESS", at(10), 0)]
        assert names(rows, self.waiting, at(60)) is None

    def test_it_lies_beside_a_globs_keys(self):
        waiting = expected(PATH + "*.json", wildcard=True, marker="_SUCCESS")
        assert names([obj("a.json")], waiting, at(60)) is None
        assert names([obj("a.json"), obj("_SUCCESS")], waiting, at(60)) == ["a.json"]

    def test_without_a_marker_its_name_is_any_name(self):
        assert names([obj("_SUCCESS")], expected(), at(60)) == ["_SUCCESS"]


@pytest.mark.parametrize(
    ("rows", "changes", "now", "text"),
    [
        ([], {}, 60, "no objects under {path}"),
        (
            [("a", -4_500_000), ("b", -4_500_100), ("c", -5_000_000)],
            {},
            60,
            "3 objects under {path}, newest 2026-10-01T15:40:05+00:00 is older than the request at {requested_at}",
        ),
        (
            [("a", -4_500_000)],
            {"requested_at": REQUESTED.replace(microsecond=5)},
            60,
            "1 object under {path}, newest 2026-10-01T15:40:05+00:00 is older than the request at {requested_at}",
        ),
        ([("a", 0)], {"min_objects": 3}, 60, "1 of at least 3 fresh objects under {path}"),
        (
            [("a", 0), ("b", 10)],
            {"quiet_period": 300},
            269,
            "2 fresh objects, settling: 41 s of 300 s left",
        ),
        ([("a", 0)], {"quiet_period": 1.5}, 0, "1 fresh object, settling: 2 s of 1.5 s left"),
        ([("a", 0), ("b", 0)], {"marker": "_SUCCESS"}, 60, "2 fresh objects under {path}, no fresh _SUCCESS yet"),
        (
            [("a", 0), ("_SUCCESS", -9)],
            {"marker": "_SUCCESS"},
            60,
            "1 fresh object under {path}, no fresh _SUCCESS yet",
        ),
    ],
)
def test_the_reason_says_what_is_there_and_what_is_missing(rows, changes, now, text):
    found = reason([obj(*row) for row in rows], expected(**changes), at(now))
    assert found == text.format(path=PATH, requested_at="2026-11-22T17:40:05+00:00")
    assert "secret" not in found


def test_the_reason_for_an_exact_key_says_at():
    assert reason([], expected(PATH + "a.json"), at(60)) == f"no objects at {PATH}a.json"


class TestThousandsOfRows:
    def test_they_are_decided_and_counted(self):
        rows = [obj(f"{number:05}") for number in range(5_000)]
        verdict = decide(iter(rows), expected(min_objects=5_000), at(60))
        assert verdict.waiting is None
        assert verdict.arrived[0].object_count == len(verdict.objects[0]) == 5_000

    def test_their_number_is_written_for_people(self):
        rows = [obj(f"{number:05}", -60) for number in range(12_345)]
        assert reason(rows, expected(), at(60)).startswith("12,345 objects under ")


#: Paths, and what they and their markers are, said plainly.
PLACES = {
    "d/": (lambda key: key.startswith("d/"), lambda key: key.startswith("d/")),
    "d/p/": (lambda key: key.startswith("d/p/"), lambda key: key.startswith("d/p/")),
    "d/q/": (lambda key: key.startswith("d/q/"), lambda key: key.startswith("d/q/")),
    "d/p/a.json": (lambda key: key == "d/p/a.json", lambda key: False),
    "d/p/*.json": (lambda key: key.startswith("d/p/") and key.endswith(".json"), lambda key: key.startswith("d/p/")),
}
KEYS = [
    *("d/a.json", "d/_SUCCESS", "d/p/", "d/p/a.json", "d/p/a.json.part", "d/p/b.json", "d/p/s/c.json", "d/p/s/"),
    *("d/p/_SUCCESS", "d/p/s/_SUCCESS", "d/p/a.done", "d/p2/a.json", "d/q/a.json", "d/q/_SUCCESS", "d/q/b.done", "x"),
]


def plainly(rows: list[StoredObject], expectation: Expectation, now: datetime) -> list[str] | None:
    """Restate the design's rule of arrival: the keys that arrived, or None."""
    rule, paths = expectation.rule, expectation.paths
    oldest = expectation.patients[0].requested_at.replace(microsecond=0) - timedelta(seconds=rule.clock_skew)
    fresh = [r for r in rows if r.last_modified >= oldest and not (r.size == 0 and r.key.endswith("/"))]
    ends = lambda name: name == rule.marker or (rule.marker[0] == "." and name.endswith(rule.marker))  # noqa: E731
    markers = [r for r in fresh if rule.marker and ends(r.key.split("/")[-1])]
    found = {path: [r for r in fresh if PLACES[path][0](r.key) and r not in markers] for path in paths}
    if any(len(there) < rule.min_objects for there in found.values()):
        return None
    if rule.marker and not all(any(PLACES[path][1](r.key) for r in markers) for path in paths):
        return None
    newest = max(r.last_modified for there in found.values() for r in there)
    if not rule.marker and (now - newest).total_seconds() < rule.quiet_period:
        return None
    return sorted({r.key for there in found.values() for r in there})


def test_any_listing_is_decided_as_the_design_says_and_in_any_order():
    dice = random.Random(4711)
    arrivals = 0
    for _ in range(1_000):
        rows = [
            StoredObject(key, at(dice.randint(-4, 8)), dice.choice([0, 1]))
            for key in dice.sample(KEYS, dice.randint(0, len(KEYS)))
        ]
        paths = dice.sample(list(PLACES), dice.choice([1, 1, 2, 3]))
        expectation = expected(
            *paths,
            wildcard=True,
            requested_at=at(dice.choice([0, 0.5])),
            clock_skew=dice.choice([0, 2]),
            min_objects=dice.choice([1, 1, 2]),
            quiet_period=dice.choice([0, 3, 5]),
            marker=dice.choice([None, "_SUCCESS", ".done"]) if "d/p/a.json" not in paths else None,
        )
        now = at(dice.randint(5, 14))
        verdict = decide(rows, expectation, now)
        assert verdict.keys == plainly(rows, expectation, now), (rows, expectation, now)
        again = decide(dice.sample(rows, len(rows)), expectation, now)
        assert (again.waiting, again.keys, again.arrived) == (verdict.waiting, verdict.keys, verdict.arrived)
        arrivals += verdict.keys is not None
    assert 200 < arrivals < 800
