"""A wait over its pokes: each patient by their own rule, in a bucket in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from helpers.stores import MemoryS3, RowsListing, poke, run, with_rule

from airflow_provider_healthex.delivery import (
    Arrival,
    ArrivalRule,
    ArrivalWait,
    Expectation,
    Patient,
    StoredObject,
)
from airflow_provider_healthex.delivery.s3_listing import S3Listing
from airflow_provider_healthex.exceptions import HealthExConfigurationError

REQUESTED = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
NOW = REQUESTED + timedelta(seconds=1_000)
PATH = "d/{projectId}/{healthexPatientId}/"


def at(seconds: float) -> datetime:
    return REQUESTED + timedelta(seconds=seconds)


def expected(*patients: Patient, path: str = PATH, wildcard: bool = False, **rule) -> Expectation:
    return Expectation((path,), {"projectId": "p"}, patients, ArrivalRule(**rule), wildcard)


def waiting_for(*ids: str, **changes) -> ArrivalWait:
    return ArrivalWait(expected(*(Patient(one, REQUESTED) for one in ids), **changes), S3Listing)


def storage(**times) -> MemoryS3:
    return MemoryS3({f"d/p/{key.replace('_', '/')}": value for key, value in times.items()}, NOW)


def one_object(modified: datetime) -> Arrival:
    return Arrival(1, 1, modified, modified)


class TestEachPatient:
    @pytest.mark.parametrize(
        ("objects", "changes", "has_arrived"),
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
    def test_is_decided_among_others_as_alone(self, objects, changes, has_arrived):
        s3 = storage(**objects, b_1=NOW, ab_1=at(10))
        alone, cohort = waiting_for("a", **changes), waiting_for("b", "a", "c", **changes)
        s3.poke(alone)
        s3.poke(cohort)
        assert (0 in alone.arrived) is (1 in cohort.arrived) is has_arrived
        rows = [StoredObject(key, *(v if isinstance(v, tuple) else (v, 1))) for key, v in s3.objects.items()]
        by_rows = ArrivalWait(alone.expectation, lambda *_: RowsListing(rows, NOW))
        poke(by_rows, lambda plan: run(plan, None))
        assert by_rows.arrived == alone.arrived

    def test_has_a_request_of_their_own(self):
        wait = ArrivalWait(expected(Patient("a", at(0)), Patient("b", at(100))), S3Listing)
        found = storage(a_1=at(50), b_1=at(50)).poke(wait)
        assert wait.missing == [1]
        assert found.reason.startswith("1 of 2 arrived, 0 settling, 1 without a fresh object")

    def test_is_not_listed_again_after_arriving(self):
        wait, s3 = waiting_for("a", "b"), storage(a_1=at(10))
        s3.poke(wait)
        s3.objects["d/p/b/1"] = at(10)
        assert s3.poke(wait).waiting is None
        assert s3.requests[-1] == {"Prefix": "d/p/b/"}
        assert wait.arrived == {0: one_object(at(10)), 1: one_object(at(10))}

    def test_needs_no_request_when_all_have_arrived(self):
        wait, s3 = waiting_for("a"), storage(a_1=at(10))
        s3.poke(wait)
        assert s3.poke(wait).waiting is None
        assert len(s3.requests) == 1

    def test_is_collected_by_their_fresh_objects_only(self):
        wait, got = waiting_for("a", "b"), []
        s3 = storage(a_1=at(10), a_2=at(-90), b_1=at(20))
        found = s3.run(wait.collect([0, 1], lambda index, rows: got.extend((index, row.key) for row in rows)))
        assert found == {0: one_object(at(10)), 1: one_object(at(20))}
        assert got == [(0, "d/p/a/1"), (1, "d/p/b/1")]

    def test_is_not_collected_where_nothing_is_left(self):
        found = storage(a_1=at(10)).run(waiting_for("a", "b").collect([0, 1], lambda index, rows: None))
        assert found == {0: one_object(at(10))}

    def test_is_collected_although_more_has_come_since(self):
        """They have arrived, and only the worker's listing is missing."""
        found = storage(a_1=at(10), a_2=at(999)).run(waiting_for("a").collect([0], lambda index, rows: None))
        assert found == {0: Arrival(2, 2, at(10), at(999))}

    def test_is_counted_by_how_far_they_are(self):
        wait = waiting_for("a", "b", "c", "d")
        assert storage(a_1=at(10), b_1=at(990), c_1=at(-99)).poke(wait).reason == (
            f"1 of 4 arrived, 1 settling, 2 without a fresh object under {PATH}"
        )
        wait = waiting_for("a", "b", marker="OK")
        assert storage(a_1=at(10)).poke(wait).reason == (
            f"0 of 2 arrived, 1 waiting for their OK, 1 without a fresh object under {PATH}"
        )

    @pytest.mark.parametrize(("objects", "unmatched"), [({}, (0,)), ({"a_1": at(-99)}, ()), ({"a_1": at(10)}, ())])
    def test_has_matched_the_path_where_anybody_has(self, objects, unmatched):
        assert storage(**objects).poke(waiting_for("a", "b")).waiting.unmatched == unmatched

    @pytest.mark.parametrize(("ids", "count"), [(["a", "b", "a"], 1), (["a", "a", "a", "b"], 2)])
    def test_needs_a_path_of_their_own(self, ids, count):
        with pytest.raises(HealthExConfigurationError, match=f"{count} of the {len(ids)} patients have the same path"):
            waiting_for(*ids)


class TestJson:
    full = Expectation(
        (PATH, "{externalId}.json", PATH + "*.json"),
        {"projectId": "p", "orgId": None},
        (Patient("a", REQUESTED, "ext-1"), Patient("b", at(7), "ext-2"), Patient(None, at(-3))),
        ArrivalRule(3, 12.5, ".done", 1.5),
        True,
    )

    @pytest.mark.parametrize("expectation", [expected(Patient("a", REQUESTED)), full])
    def test_an_expectation_survives_its_json_form(self, expectation):
        assert Expectation.from_dict(json.loads(json.dumps(expectation.to_dict()))) == expectation

    def test_fractions_of_a_second_are_rounded_down_as_deciding_does(self):
        exact = expected(Patient("a", REQUESTED.replace(microsecond=999_999)), Patient("b", at(7.9)))
        again = Expectation.from_dict(json.loads(json.dumps(exact.to_dict())))
        assert [each.requested_at for each in again.patients] == [REQUESTED, at(7)]
        assert again.to_dict() == exact.to_dict()
        assert [again.rule.floor(each.requested_at) for each in again.patients] == [
            exact.rule.floor(each.requested_at) for each in exact.patients
        ]

    def test_nobody_is_an_expectation_too(self):
        assert Expectation.from_dict(json.loads(json.dumps(expected().to_dict()))) == expected()

    @pytest.mark.parametrize("path", [PATH, "d/{externalId}/{projectId}/"])
    def test_an_external_id_is_in_it_only_where_the_path_needs_it(self, path):
        first = expected(Patient("a", REQUESTED, "ext-1"), Patient("b", at(7), "ext-2"), path=path, marker="OK")
        again = Expectation.from_dict(json.loads(json.dumps(first.to_dict())))
        assert again.to_dict() == first.to_dict()
        assert ("ext-1" in json.dumps(first.to_dict())) is ("externalId" in path)

    def test_both_decide_alike(self):
        for quiet_period in (300, 995):
            first = with_rule(expected(Patient("a", REQUESTED)), quiet_period=quiet_period)
            again = Expectation.from_dict(json.loads(json.dumps(first.to_dict())))
            assert storage(a_1=at(10)).poke(ArrivalWait(first, S3Listing)) == storage(a_1=at(10)).poke(
                ArrivalWait(again, S3Listing)
            )

    def test_ten_thousand_patients_take_little(self):
        many = expected(*(Patient(f"{number:024x}", at(number)) for number in range(10_000)))
        assert len(json.dumps(many.to_dict())) < 400_000


class TestSeveralPathsOfACohort:
    def test_each_patient_needs_each(self):
        expectation = replace(
            expected(Patient("a", REQUESTED), Patient("b", REQUESTED)),
            paths=("d/{healthexPatientId}/", "e/{healthexPatientId}.json"),
        )
        wait = ArrivalWait(expectation, S3Listing)
        s3 = MemoryS3({"d/a/1": at(1), "d/b/1": at(1), "e/b.json": at(1)}, NOW)
        s3.poke(wait)
        assert wait.missing == [0]


@pytest.mark.parametrize(("missing", "requests"), [(1_000, 100), (100, 100), (10, 10), (1, 1)])
def test_a_thousand_patients_of_a_hundred_objects_take_no_more_requests_than_promised(missing, requests):
    ids = [f"{number:04}" for number in range(1_000)]
    s3 = MemoryS3({f"d/p/{one}/{n:02}": at(10) for one in ids for n in range(100)}, NOW)
    wait = waiting_for(*ids)
    wait.arrived.update((index, one_object(NOW)) for index in range(1_000) if index % (1_000 // missing))
    wait.missing = [index for index in range(1_000) if index not in wait.arrived]
    assert len(wait.missing) == missing
    assert s3.poke(wait).waiting is None
    assert sum(one.object_count for one in wait.arrived.values()) == missing * 100 + (1_000 - missing)
    assert len(s3.requests) <= requests
