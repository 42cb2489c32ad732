"""What holds for any bucket, any path and any page, rather than for the ones that somebody thought of."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from airflow_provider_healthex.delivery.listing import IncompleteListing, UnusableListing, look
from delivery.s3_lists import MemoryS3
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_healthex.delivery import (
    Arrived,
    CohortExpectation,
    CohortWait,
    Expectation,
    Member,
    expand,
    parse_key,
)

REQUESTED = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
NOW = REQUESTED + timedelta(hours=1)
PATH = "d/{projectId}/{healthexPatientId}/"

ids = st.text(alphabet="abAB01-_.", min_size=1, max_size=8).filter(lambda text: ".." not in text and text != ".")
moments = st.integers(-7200, 3600).map(lambda seconds: REQUESTED + timedelta(seconds=seconds))
#: Keys of two patients, of their namesakes, and of folders.
keys = st.tuples(
    st.sampled_from(["d/p/a/", "d/p/b/", "d/p/ab/", "d/p/", "d/"]), st.sampled_from(["", "1", "2", "x/1", "a/"])
).map("".join)
buckets = st.dictionaries(keys, st.tuples(moments, st.integers(0, 2)), max_size=14)
rules = st.fixed_dictionaries(
    {
        "min_objects": st.integers(1, 3),
        "quiet_period": st.sampled_from([0, 300, 3000]),
        "marker": st.sampled_from([None, "1"]),
        "clock_skew": st.sampled_from([0, 2, 60]),
    }
)


def arrives(objects: dict[str, Any], patient: str, rule: dict[str, Any]) -> int | None:
    """Restate the rule plainly: the number of fresh objects, or None."""
    floor = REQUESTED - timedelta(seconds=rule["clock_skew"])
    own = {
        key: modified
        for key, (modified, size) in objects.items()
        if key.startswith(f"d/p/{patient}/") and (size or not key.endswith("/")) and modified >= floor
    }
    marks = [key for key in own if rule["marker"] and key.rpartition("/")[2] == rule["marker"]]
    data = [modified for key, modified in own.items() if key not in marks]
    if len(data) < rule["min_objects"] or (rule["marker"] and not marks):
        return None
    settled = rule["marker"] or (NOW - max(data)).total_seconds() >= rule["quiet_period"]
    return len(data) if settled else None


@given(buckets, rules, st.integers(1, 5))
def test_a_patient_arrives_by_the_rule_whatever_the_pages(objects, rule, page):
    target = expand(PATH, {"projectId": "p", "healthexPatientId": "a"})
    verdict = MemoryS3(objects, NOW, page).drive(look(Expectation((target,), REQUESTED, **rule)))
    assert (len(verdict.objects) if isinstance(verdict, Arrived) else None) == arrives(objects, "a", rule)


@given(buckets, rules, st.integers(1, 5), st.permutations(["a", "b", "ab"]))
def test_each_patient_of_a_cohort_arrives_as_one_alone_would(objects, rule, page, patients):
    members = tuple(Member(patient, 0) for patient in patients)
    wait = CohortWait(CohortExpectation(PATH, {"projectId": "p"}, REQUESTED, members, **rule))
    MemoryS3(objects, NOW, page).drive(wait.look())
    found = {patients[index]: settled.object_count for index, settled in wait.settled.items()}
    expected = {patient: arrives(objects, patient, rule) for patient in patients}
    assert found == {patient: count for patient, count in expected.items() if count is not None}


@given(ids, ids, st.sampled_from(["", "1.json", "x/2.json"]))
def test_a_delivered_key_is_read_back_as_the_ids_it_was_made_of(project, patient, name):
    values = {"projectId": project, "healthexPatientId": patient}
    key = expand(PATH, values).prefix + name
    assert parse_key(PATH, key) == values


rows = st.fixed_dictionaries(
    {},
    optional={
        "Key": st.sampled_from(["d/p/a/1", "d/p/a/2", "d/p/b/1", "", None, 7]),
        "LastModified": st.sampled_from([NOW, NOW.replace(tzinfo=None), "yesterday", None]),
        "Size": st.sampled_from([0, 1, "1", None]),
    },
)
pages = st.fixed_dictionaries(
    {},
    optional={
        "Contents": st.lists(rows, max_size=4) | st.none(),
        "IsTruncated": st.booleans(),
        "NextContinuationToken": st.sampled_from(["t", "u", ""]),
        "ResponseMetadata": st.just({}),
    },
)


@given(st.lists(pages, min_size=1, max_size=6))
def test_any_pages_end_in_a_verdict_or_a_typed_error(answers):
    target = expand(PATH, {"projectId": "p", "healthexPatientId": "a"})
    steps = look(Expectation((target,), REQUESTED))
    next(steps)
    try:
        for answer in answers:
            steps.send(answer)
    except (StopIteration, IncompleteListing, UnusableListing):
        return
    assert all(answer.get("IsTruncated", answer.get("NextContinuationToken")) for answer in answers)
