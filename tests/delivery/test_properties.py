"""Properties of any bucket, any path and any page, tried on generated ones."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from helpers.stores import MemoryS3, MemorySftp
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient, expand, parse_key
from airflow_provider_healthex.delivery.s3_listing import IncompleteListing, S3Listing, UnusableListing

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


def waiting_for(*patients: str, **rule: Any) -> Expectation:
    return Expectation(
        (PATH,), {"projectId": "p"}, tuple(Patient(one, REQUESTED) for one in patients), ArrivalRule(**rule)
    )


@given(buckets, rules, st.integers(1, 5))
def test_a_patient_arrives_by_the_rule_whatever_the_pages(objects, rule, page):
    wait = ArrivalWait(waiting_for("a", **rule), S3Listing)
    found = MemoryS3(objects, NOW, page).poke(wait)
    assert (None if found.waiting else len(found.objects[0])) == arrives(objects, "a", rule)
    assert (wait.arrived[0].object_count if wait.arrived else None) == arrives(objects, "a", rule)


@given(buckets, rules, st.integers(1, 5), st.permutations(["a", "b", "ab"]))
def test_each_patient_of_a_cohort_arrives_as_one_alone_would(objects, rule, page, patients):
    wait = ArrivalWait(waiting_for(*patients, **rule), S3Listing)
    MemoryS3(objects, NOW, page).poke(wait)
    found = {patients[index]: arrival.object_count for index, arrival in wait.arrived.items()}
    expected = {patient: arrives(objects, patient, rule) for patient in patients}
    assert found == {patient: count for patient, count in expected.items() if count is not None}


off = st.sampled_from([-5 * 3600, -600, 0, 600, 9 * 3600])
#: Of one patient's files: which, and how many seconds after the poke before they are written.
writes = st.lists(st.tuples(st.sampled_from(["1", "2", "x/1", "a.part"]), st.integers(0, 400)), max_size=8)


@given(off, buckets, writes, writes, st.sampled_from([0, 300]))
def test_on_sftp_nobody_arrives_early_or_by_another_patients_files(off, before, of_a, of_b, quiet_period):
    """Whatever the server's clock says, as long as it goes on: by what really happened, and when."""
    files = MemorySftp(off, NOW.timestamp(), folders=("d", "d/p"))
    requested_at = datetime.fromtimestamp(files.now, timezone.utc)
    written: dict[str, float] = {}
    for key in before:
        if not key.endswith("/"):
            files.write(key, ago=3 * 86_400)
    patients = tuple(Patient(one, requested_at) for one in ("a", "b"))
    rule = ArrivalRule(quiet_period=quiet_period, clock_skew=60)
    wait = ArrivalWait(Expectation((PATH,), {"projectId": "p"}, patients, rule), files.listing)
    files.pass_time(1)
    files.poke(wait)
    for number in range(max(len(of_a), len(of_b))):
        for patient, some in (("a", of_a), ("b", of_b)):
            if number < len(some):
                name, seconds = some[number]
                files.pass_time(seconds)
                files.write(f"d/p/{patient}/{name}", size=number)
                written[f"d/p/{patient}/{name}"] = files.now
        known = set(wait.arrived)
        files.poke(wait)
        for index in set(wait.arrived) - known:
            own = {key: then for key, then in written.items() if key.startswith(f"d/p/{'ab'[index]}/")}
            assert any(not key.endswith(".part") for key in own), "no file was written since the request"
            assert files.now - max(own.values()) >= quiet_period, "it has not settled"


@given(off, st.integers(0, 2), st.integers(1, 3))
def test_on_sftp_everybody_arrives_in_the_end(off, old, new):
    files = MemorySftp(off, NOW.timestamp(), folders=("d", "d/p"))
    requested_at = datetime.fromtimestamp(files.now, timezone.utc)
    for number in range(old):
        files.write(f"d/p/a/{number}", ago=3 * 86_400)
    patients = tuple(Patient(one, requested_at) for one in ("a", "b"))
    rule = ArrivalRule(quiet_period=300, clock_skew=60, min_objects=new)
    wait = ArrivalWait(Expectation((PATH,), {"projectId": "p"}, patients, rule), files.listing)
    files.pass_time(1)
    files.poke(wait)
    for number in range(new):
        files.pass_time(60)
        files.write(f"d/p/a/{number}")
        files.write(f"d/p/b/{number}")
    files.poke(wait)
    files.pass_time(300)
    assert files.poke(wait).waiting is None


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
    plan = ArrivalWait(waiting_for("a"), S3Listing).poke()
    next(plan)
    try:
        for answer in answers:
            plan.send([answer])
    except (StopIteration, IncompleteListing, UnusableListing):
        return
    assert all(answer.get("IsTruncated", answer.get("NextContinuationToken")) for answer in answers)
