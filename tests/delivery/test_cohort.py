"""Deciding for many: each patient's own rules, in a bucket in memory."""

from __future__ import annotations

import json
import random
import time
from datetime import datetime, timedelta, timezone

import pytest
from delivery.s3_lists import MemoryS3

from airflow_provider_healthex.delivery import (
    AllSettled,
    Arrived,
    CohortExpectation,
    CohortWait,
    Expectation,
    Member,
    Settled,
    StoredObject,
    decide,
    expand,
)
from airflow_provider_healthex.exceptions import HealthExConfigurationError

SINCE = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
NOW = SINCE + timedelta(seconds=1_000)
PATH = "d/{projectId}/{healthexPatientId}/"


def at(seconds: float) -> datetime:
    return SINCE + timedelta(seconds=seconds)


def expected(*members: Member, **changes) -> CohortExpectation:
    given = {"path": PATH, "values": {"projectId": "p"}, "since": SINCE, "members": members, **changes}
    return CohortExpectation(**given)


def wait(*ids: str, **changes) -> CohortWait:
    return CohortWait(expected(*(Member(one, 0) for one in ids), **changes))


def storage(**times) -> MemoryS3:
    return MemoryS3({f"d/p/{key.replace('_', '/')}": value for key, value in times.items()}, NOW)


class TestEachPatient:
    @pytest.mark.parametrize(
        ("objects", "changes", "settled"),
        [
            ({"a_1": at(10)}, {}, True),
            ({"a_1": at(-3)}, {}, False),
            ({"a_1": at(-2)}, {}, True),
            ({"a_1": at(-2)}, {"clock_skew": 0}, False),
            ({"a_1": at(700)}, {}, True),
            ({"a_1": at(701)}, {}, False),
            ({"a_1": at(10), "a_2": at(701)}, {}, False),
            ({"a_1": at(10)}, {"min_objects": 2}, False),
            ({"a_1": at(10), "a_2": at(10)}, {"min_objects": 2}, True),
            ({"a_1": at(10), "a_2": at(-9)}, {"min_objects": 2}, False),
            ({"a_": (at(10), 0)}, {}, False),
            ({"a_": (at(10), 5)}, {}, True),
            ({"a_1": at(990), "a_OK": at(990)}, {"marker": "OK"}, True),
            ({"a_1": at(990), "a_OK": at(-99)}, {"marker": "OK"}, False),
            ({"a_OK": at(990)}, {"marker": "OK"}, False),
            ({"a_1": at(10)}, {"marker": "OK"}, False),
        ],
    )
    def test_is_decided_as_one_alone(self, objects, changes, settled):
        cohort, s3 = wait("a", **changes), storage(**objects)
        assert isinstance(s3.drive(cohort.look()), AllSettled) is settled
        rows = [StoredObject(key, *(v if isinstance(v, tuple) else (v, 1))) for key, v in s3.objects.items()]
        target = expand(PATH, {"projectId": "p", "healthexPatientId": "a"})
        alone = decide(rows, Expectation(targets=(target,), since=SINCE, **changes), NOW)
        assert isinstance(alone, Arrived) is settled

    def test_has_a_baseline_of_their_own(self):
        cohort = CohortWait(expected(Member("a", 0), Member("b", 100)))
        verdict = storage(a_1=at(50), b_1=at(50)).drive(cohort.look())
        assert cohort.missing == [1]
        assert verdict.reason.startswith("1 of 2 arrived, 0 begun and waiting for quiet, 1 without a fresh object")

    def test_who_settled_is_not_listed_again(self):
        cohort, s3 = wait("a", "b"), storage(a_1=at(10))
        s3.drive(cohort.look())
        s3.objects["d/p/b/1"] = at(10)
        assert s3.drive(cohort.look()) == AllSettled()
        assert s3.requests[-1] == {"Prefix": "d/p/b/"}
        assert cohort.settled == {0: Settled(1, at(10)), 1: Settled(1, at(10))}

    def test_collecting_shows_fresh_objects_only(self):
        cohort, got = wait("a", "b"), []
        s3 = storage(a_1=at(10), a_2=at(-90), b_1=at(20))
        found = s3.drive(cohort.collect([0, 1], lambda index, rows: got.extend((index, row.key) for row in rows)))
        assert found == {0: Settled(1, at(10)), 1: Settled(1, at(20))}
        assert got == [(0, "d/p/a/1"), (1, "d/p/b/1")]


class TestPathsWithoutABeginning:
    """Where a glob stands before the patient, or one patient's keys begin as another's."""

    def test_all_is_listed_from_what_all_share(self):
        cohort = wait("a", "b", path="d/{projectId}/*/{healthexPatientId}/*.json", wildcard=True)
        s3 = storage(x_a_1=at(1))
        s3.objects = {"d/p/x/a/1.json": at(1), "d/p/y/b/1.json": at(1), "d/p/y/b/1.xml": at(999), "d/p/y/c/1.json": NOW}
        assert s3.drive(cohort.look()) == AllSettled()
        assert s3.requests == [{"Prefix": "d/p/"}]

    def test_ids_that_begin_alike_are_told_apart(self):
        cohort = wait("1", "1-2", path="d/{healthexPatientId}-x.*", wildcard=True)
        s3 = MemoryS3({"d/1-2-x.json": at(1)}, NOW)
        s3.drive(cohort.look())
        assert cohort.missing == [0]

    @pytest.mark.parametrize(
        ("key", "owner"),
        [
            ("d/x/a/1", "a"),
            ("d/x/a/deep/er/1", "a"),
            ("d/x/y/a/1", "a"),
            ("d/x/stranger/a/1", "a"),
            ("d/x/a/", None),
            ("d/a/1", None),
            ("d/x/aa/1", None),
            ("d/x/stranger/1", None),
            ("d/x/a/b/1", None),  # of either
        ],
    )
    def test_a_key_is_that_patients_whom_alone_it_fits(self, key, owner):
        cohort = wait("a", "b", path="d/*/{healthexPatientId}/", wildcard=True)
        s3 = MemoryS3({key: (at(1), 0 if key.endswith("/") else 1)}, NOW)
        s3.drive(cohort.look())
        arrived = [cohort.expectation.members[index].patient_id for index in cohort.settled]
        assert arrived == ([owner] if owner else [])

    def test_keys_that_fit_several_are_counted_in_one_warning(self, caplog):
        cohort = wait("a", "b", path="d/*/{healthexPatientId}/", wildcard=True)
        s3 = MemoryS3({"d/x/a/1": at(1), "d/x/a/b/1": at(1), "d/x/b/a/1": at(1), "d/x/y/other": at(1)}, NOW)
        for _ in range(3):
            s3.drive(cohort.look())
        assert cohort.missing == [1]
        (warning,) = caplog.records
        assert warning.getMessage().startswith("2 objects skipped: the path d/*/{healthexPatientId}/ fits several")

    @pytest.mark.parametrize(
        "path",
        [
            "{healthexPatientId}-*",
            "*-{healthexPatientId}-*.json",
            "*/x-{healthexPatientId}.json",
            "?/{healthexPatientId}/*/",
            "[!a]/{healthexPatientId}/*b",
            "*/{healthexPatientId}/{healthexPatientId}-*",
            "*/{externalId}/{healthexPatientId}*".replace("}*", "}/*"),
        ],
    )
    def test_a_key_is_given_to_the_only_target_that_matches(self, path):
        """Compare with trying every patient."""
        members = [Member(one, 0, external_id=f"e{one}") for one in ("a", "b", "ab", "a-b", "b-a")]
        cohort = CohortWait(expected(*members, path=path, wildcard=True, values={}))
        dice = random.Random(20261125)
        keys = {
            "".join(dice.choices(["a", "b", "ab", "-", "/", "x-", ".json", "ea", "eab"], k=n % 8 + 1))
            for n in range(4_000)
        }
        s3 = MemoryS3({key: at(1) for key in keys if key[-1] != "/"}, NOW)
        s3.drive(cohort.look())
        fits = {key: [i for i, target in enumerate(cohort.targets) if target.matches(key)] for key in s3.objects}
        counts = {i: sum(1 for found in fits.values() if found == [i]) for i in range(len(members))}
        assert {i: one.object_count for i, one in cohort.settled.items()} == {i: n for i, n in counts.items() if n}

    def test_a_long_key_of_a_stranger_takes_no_time(self):
        cohort = wait("a", "b", path="*/*/{healthexPatientId}/*/*.json", wildcard=True)
        s3 = MemoryS3({"x/" * 500 + "end": at(1), "a/" * 500 + "end": at(1)}, NOW)
        started = time.monotonic()
        s3.drive(cohort.look())
        assert time.monotonic() - started < 20

    def test_twins_are_refused(self):
        with pytest.raises(HealthExConfigurationError, match="1 of the 3 patients"):
            wait("a", "b", "a")


@pytest.mark.parametrize("path", [PATH, "d/{externalId}/{projectId}/"])
def test_the_json_form_is_read_back(path):
    first = expected(Member("a", 0, "ext-1"), Member("b", 7, "ext-2"), path=path, marker="OK", min_objects=3)
    again = CohortExpectation.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again.to_dict() == first.to_dict()
    assert ("ext-1" in json.dumps(first.to_dict())) is ("externalId" in path)


@pytest.mark.parametrize(("missing", "requests"), [(1_000, 100), (100, 100), (10, 10), (1, 1)])
def test_a_thousand_patients_of_a_hundred_objects(missing, requests):
    """The issue's measure: never more than the bound, with as many still missing."""
    ids = [f"{number:04}" for number in range(1_000)]
    s3 = MemoryS3({f"d/p/{one}/{n:02}": at(10) for one in ids for n in range(100)}, NOW)
    cohort = wait(*ids)
    cohort.settled.update((index, Settled(1, NOW)) for index in range(1_000) if index % (1_000 // missing))
    assert len(cohort.missing) == missing
    assert s3.drive(cohort.look()) == AllSettled()
    assert sum(one.object_count for one in cohort.settled.values()) == missing * 100 + (1_000 - missing)
    assert len(s3.requests) <= requests
