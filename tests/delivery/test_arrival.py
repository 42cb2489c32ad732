"""Deciding arrival: every rule by its boundary, and all of them together against a plain restatement."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_healthex.delivery import Arrived, Expectation, StoredObject, Waiting, decide, expand

SINCE = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
VALUES = {"projectId": "project-secret", "healthexPatientId": "patient-secret", "externalId": "external-secret"}
PATH = "d/{projectId}/{healthexPatientId}/"
ROOT = "d/project-secret/patient-secret/"


def at(seconds: float) -> datetime:
    """Return the moment so many seconds after the baseline."""
    return SINCE + timedelta(seconds=seconds)


def obj(name: str, seconds: float = 10, size: int = 1) -> StoredObject:
    return StoredObject(ROOT + name, at(seconds), size)


def expected(*paths: str, wildcard: bool = False, **changes) -> Expectation:
    targets = tuple(expand(path, VALUES, wildcard=wildcard) for path in paths or (PATH,))
    return Expectation(**{"targets": targets, "since": SINCE, "quiet_period": 0, **changes})


def names(verdict: Arrived | Waiting) -> list[str] | None:
    return [row.key.removeprefix(ROOT) for row in verdict.objects] if isinstance(verdict, Arrived) else None


def reason(verdict: Arrived | Waiting) -> str:
    assert isinstance(verdict, Waiting)
    return verdict.reason


class TestBaseline:
    def test_a_stale_object_is_not_an_arrival(self):
        assert names(decide([obj("a", -3600)], expected(), at(3600))) is None

    def test_an_object_of_the_baselines_own_second_has_arrived(self):
        assert names(decide([obj("a", 0)], expected(clock_skew=0), at(60))) == ["a"]

    def test_an_object_of_the_second_before_has_not(self):
        assert names(decide([obj("a", -1)], expected(clock_skew=0), at(60))) is None

    @pytest.mark.parametrize(("seconds", "arrived"), [(-4, False), (-3, False), (-2, True), (-1, True)])
    def test_the_allowed_skew_counts_to_the_second(self, seconds, arrived):
        assert (names(decide([obj("a", seconds)], expected(clock_skew=2), at(60))) == ["a"]) is arrived

    def test_a_baseline_with_fractions_is_floored_because_the_objects_times_are(self):
        within = expected(since=SINCE.replace(microsecond=999_999), clock_skew=0)
        assert names(decide([obj("a", 0)], within, at(60))) == ["a"]
        assert names(decide([obj("a", -1)], within, at(60))) is None

    def test_a_baseline_of_another_time_zone_is_the_same_moment(self):
        tokyo = SINCE.astimezone(timezone(timedelta(hours=9)))
        assert names(decide([obj("old", -1), obj("new", 0)], expected(since=tokyo, clock_skew=0), at(60))) == ["new"]

    def test_older_objects_are_ignored_where_there_are_newer(self):
        assert names(decide([obj("old", -60), obj("new")], expected(), at(60))) == ["new"]


class TestWhatCounts:
    def test_nothing_is_no_arrival(self):
        assert names(decide([], expected(), at(60))) is None

    @pytest.mark.parametrize("folder", ["", "sub/", "sub/sub/"])
    def test_a_folder_marker_is_no_object(self, folder):
        assert names(decide([obj(folder, size=0)], expected(), at(60))) is None
        assert names(decide([obj(folder, size=0), obj("a")], expected(), at(60))) == ["a"]

    def test_a_folder_marker_is_not_even_a_stale_object(self):
        assert reason(decide([obj("", -60, size=0)], expected(), at(60))) == f"no objects under {PATH}"

    def test_an_empty_file_is_an_object(self):
        assert names(decide([obj("empty.json", size=0)], expected(), at(60))) == ["empty.json"]

    def test_an_object_with_content_and_a_folders_name_is_an_object(self):
        assert names(decide([obj("odd/", size=1)], expected(), at(60))) == ["odd/"]

    def test_a_folder_marker_does_not_prolong_the_quiet(self):
        rows = [obj("a", 0), obj("late/", 299, size=0)]
        assert names(decide(rows, expected(quiet_period=300), at(300))) == ["a"]

    @pytest.mark.parametrize("stranger", ["x/a.json", "d/project-secret/patient-secret2/a.json"])
    def test_a_strangers_object_is_ignored(self, stranger):
        assert names(decide([StoredObject(stranger, at(10), 1)], expected(), at(60))) is None

    @pytest.mark.parametrize(("count", "arrived"), [(2, False), (3, True), (4, True)])
    def test_min_objects_is_reached_by_fresh_objects_alone(self, count, arrived):
        rows = [obj(f"{number}") for number in range(count)] + [obj("old", -60), obj("f/", size=0)]
        assert (names(decide(rows, expected(min_objects=3), at(60))) is not None) is arrived

    def test_an_object_seen_twice_is_one(self):
        rows = [obj("a"), obj("a")]
        assert names(decide(rows, expected(), at(60))) == ["a"]
        assert names(decide(rows, expected(min_objects=2), at(60))) is None

    def test_the_objects_come_in_the_order_of_their_keys(self):
        assert names(decide([obj("b"), obj("c"), obj("a")], expected(), at(60))) == ["a", "b", "c"]

    def test_an_exact_key_is_not_its_longer_namesake(self):
        exact = expected(PATH + "a.json")
        assert names(decide([obj("a.json.part")], exact, at(60))) is None
        assert names(decide([obj("a.json.part"), obj("a.json")], exact, at(60))) == ["a.json"]

    def test_a_glob_takes_what_it_matches(self):
        glob = expected(PATH + "*.json", wildcard=True)
        assert names(decide([obj("a.xml"), obj("b/c.json")], glob, at(60))) == ["b/c.json"]


class TestSeveralTargets:
    paths = (PATH + "a/", PATH + "b/")

    def test_each_needs_its_objects(self):
        assert names(decide([obj("a/1")], expected(*self.paths), at(60))) is None
        assert names(decide([obj("b/1")], expected(*self.paths), at(60))) is None
        assert names(decide([obj("b/1"), obj("a/1")], expected(*self.paths), at(60))) == ["a/1", "b/1"]

    def test_each_needs_min_objects(self):
        rows = [obj("a/1"), obj("a/2"), obj("a/3"), obj("b/1")]
        assert names(decide(rows, expected(*self.paths, min_objects=2), at(60))) is None
        assert names(decide([*rows, obj("b/2")], expected(*self.paths, min_objects=2), at(60))) is not None

    def test_each_needs_its_marker(self):
        rows = [obj("a/1"), obj("b/1"), obj("a/_SUCCESS")]
        waiting = expected(*self.paths, marker="_SUCCESS")
        assert names(decide(rows, waiting, at(60))) is None
        assert names(decide([*rows, obj("b/_SUCCESS")], waiting, at(60))) == ["a/1", "b/1"]

    def test_the_reason_names_the_one_that_is_missing(self):
        assert reason(decide([obj("a/1")], expected(*self.paths), at(60))) == f"no objects under {PATH}b/"

    def test_the_newest_of_all_begins_the_quiet(self):
        rows = [obj("a/1", 0), obj("b/1", 100)]
        waiting = expected(*self.paths, quiet_period=300)
        assert names(decide(rows, waiting, at(399))) is None
        assert names(decide(rows, waiting, at(400))) == ["a/1", "b/1"]

    def test_where_they_overlap_an_object_is_both_targets_and_told_once(self):
        overlapping = expected(PATH, PATH + "a/")
        assert names(decide([obj("1")], overlapping, at(60))) is None
        assert names(decide([obj("a/1")], overlapping, at(60))) == ["a/1"]

    def test_where_they_overlap_both_listings_show_an_object_and_it_still_is_one(self):
        once_a_listing = [obj("a/1")] * 2
        assert names(decide(once_a_listing, expected(PATH, PATH + "a/", min_objects=2), at(60))) is None


class TestQuiet:
    @pytest.mark.parametrize(("seconds", "arrived"), [(0, False), (299, False), (300, True), (301, True)])
    def test_it_ends_to_the_second(self, seconds, arrived):
        rows = [obj("a", -2), obj("b", 0)]
        assert (names(decide(rows, expected(quiet_period=300), at(seconds))) is not None) is arrived

    def test_no_quiet_period_arrives_at_once(self):
        assert names(decide([obj("a", 5)], expected(quiet_period=0), at(5))) == ["a"]

    def test_a_stale_object_has_no_part_in_it(self):
        assert names(decide([obj("a", 0), obj("b", -60)], expected(quiet_period=300), at(300))) == ["a"]

    def test_an_object_from_the_storages_future_is_waited_for(self):
        verdict = decide([obj("a", 100)], expected(quiet_period=300), at(0))
        assert reason(verdict) == "1 fresh object, settling: 400 s of 300 s left"

    def test_only_the_storages_clock_counts(self):
        """The baseline may lie in the storage's future, and its objects still come to rest."""
        rows = [obj("a", -1)]
        assert names(decide(rows, expected(quiet_period=30), at(28))) is None
        assert names(decide(rows, expected(quiet_period=30), at(29))) == ["a"]


class TestMarker:
    waiting = expected(marker="_SUCCESS", quiet_period=3600)

    def test_it_is_required(self):
        assert names(decide([obj("a")], self.waiting, at(99_999))) is None

    def test_it_stands_for_the_quiet_period_and_is_not_counted(self):
        assert names(decide([obj("a"), obj("_SUCCESS", size=0)], self.waiting, at(10))) == ["a"]

    def test_a_stale_one_ends_nothing(self):
        assert names(decide([obj("a"), obj("_SUCCESS", -60)], self.waiting, at(60))) is None

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_fresh_one_does_beside_a_stale_one(self, order):
        markers = [obj("1/_SUCCESS", -60), obj("2/_SUCCESS")][::order]
        assert names(decide([obj("a"), *markers], self.waiting, at(60))) == ["a"]

    def test_it_alone_is_no_delivery(self):
        assert reason(decide([obj("_SUCCESS")], self.waiting, at(60))) == f"no objects under {PATH}"

    def test_it_does_not_make_up_for_a_missing_object(self):
        waiting = expected(marker="_SUCCESS", min_objects=2)
        assert names(decide([obj("a"), obj("_SUCCESS")], waiting, at(60))) is None

    def test_it_does_not_make_up_for_stale_objects(self):
        assert names(decide([obj("a", -60), obj("_SUCCESS")], self.waiting, at(60))) is None

    def test_one_that_starts_with_a_dot_is_an_ending(self):
        waiting = expected(marker=".done", quiet_period=3600)
        assert names(decide([obj("a.json"), obj("a.done")], waiting, at(60))) == ["a.json"]
        assert names(decide([obj("a.json"), obj("a.done.json")], waiting, at(60))) is None

    def test_another_patients_ends_nothing(self):
        rows = [obj("a"), StoredObject("d/project-secret/patient-secret2/_SUCCESS", at(10), 0)]
        assert names(decide(rows, self.waiting, at(60))) is None

    def test_it_lies_beside_a_globs_keys(self):
        waiting = expected(PATH + "*.json", wildcard=True, marker="_SUCCESS")
        assert names(decide([obj("a.json")], waiting, at(60))) is None
        assert names(decide([obj("a.json"), obj("_SUCCESS")], waiting, at(60))) == ["a.json"]

    def test_without_a_marker_its_name_is_any_name(self):
        assert names(decide([obj("_SUCCESS")], expected(), at(60))) == ["_SUCCESS"]


@pytest.mark.parametrize(
    ("rows", "changes", "now", "text"),
    [
        ([], {}, 60, "no objects under {path}"),
        (
            [("a", -4_500_000), ("b", -4_500_100), ("c", -5_000_000)],
            {},
            60,
            "3 objects under {path}, newest 2026-10-01T15:40:05+00:00 is older than the request at {since}",
        ),
        (
            [("a", -4_500_000)],
            {"since": SINCE.replace(microsecond=5)},
            60,
            "1 object under {path}, newest 2026-10-01T15:40:05+00:00 is older than the request at {since}",
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
    verdict = decide([obj(*row) for row in rows], expected(**changes), at(now))
    assert reason(verdict) == text.format(path=PATH, since="2026-11-22T17:40:05+00:00")
    assert "secret" not in reason(verdict)


def test_the_reason_for_an_exact_key_says_at():
    assert reason(decide([], expected(PATH + "a.json"), at(60))) == f"no objects at {PATH}a.json"


class TestThousandsOfRows:
    def test_they_are_decided_and_counted(self):
        rows = [obj(f"{number:05}") for number in range(5_000)]
        verdict = decide(iter(rows), expected(min_objects=5_000), at(60))
        assert isinstance(verdict, Arrived)
        assert len(verdict.objects) == 5_000

    def test_their_number_is_written_for_people(self):
        rows = [obj(f"{number:05}", -60) for number in range(12_345)]
        assert reason(decide(rows, expected(), at(60))).startswith("12,345 objects under ")


class TestJson:
    full = expected(
        PATH,
        "{externalId}.json",
        PATH + "*.json",
        wildcard=True,
        since=SINCE.replace(microsecond=250_000),
        clock_skew=1.5,
        min_objects=3,
        quiet_period=12.5,
        marker=".done",
    )

    @pytest.mark.parametrize("expectation", [expected(), full])
    def test_an_expectation_survives_its_json_form(self, expectation):
        assert Expectation.from_dict(json.loads(json.dumps(expectation.to_dict()))) == expectation

    def test_two_decide_alike_before_and_after(self):
        again = Expectation.from_dict(json.loads(json.dumps(expected(quiet_period=300).to_dict())))
        assert decide([obj("a")], again, at(60)) == decide([obj("a")], expected(quiet_period=300), at(60))


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


def plainly(rows: list[StoredObject], paths: list[str], e: Expectation, now: datetime) -> list[str] | None:
    """Restate the design's rule of arrival: the keys that arrived, or None."""
    oldest = e.since.replace(microsecond=0) - timedelta(seconds=e.clock_skew)
    fresh = [r for r in rows if r.last_modified >= oldest and not (r.size == 0 and r.key.endswith("/"))]
    ends = lambda name: name == e.marker or (e.marker[0] == "." and name.endswith(e.marker))  # noqa: E731
    markers = [r for r in fresh if e.marker and ends(r.key.split("/")[-1])]
    found = {path: [r for r in fresh if PLACES[path][0](r.key) and r not in markers] for path in paths}
    if any(len(there) < e.min_objects for there in found.values()):
        return None
    if e.marker and not all(any(PLACES[path][1](r.key) for r in markers) for path in paths):
        return None
    newest = max(r.last_modified for there in found.values() for r in there)
    if not e.marker and (now - newest).total_seconds() < e.quiet_period:
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
            since=at(dice.choice([0, 0.5])),
            clock_skew=dice.choice([0, 2]),
            min_objects=dice.choice([1, 1, 2]),
            quiet_period=dice.choice([0, 3, 5]),
            marker=dice.choice([None, "_SUCCESS", ".done"]) if "d/p/a.json" not in paths else None,
        )
        now = at(dice.randint(5, 14))
        verdict = decide(rows, expectation, now)
        told = [row.key for row in verdict.objects] if isinstance(verdict, Arrived) else None
        assert told == plainly(rows, paths, expectation, now), (rows, paths, expectation, now)
        assert decide(dice.sample(rows, len(rows)), expectation, now) == verdict
        arrivals += told is not None
    assert 200 < arrivals < 800
