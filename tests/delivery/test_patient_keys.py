"""Which patient a key belongs to, where a glob stands before the id, or one patient's keys begin as another's."""

from __future__ import annotations

import random
import time
from datetime import datetime, timedelta, timezone

import pytest
from helpers.stores import MemoryS3, MemorySftp

from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient
from airflow_provider_healthex.delivery.s3_listing import S3Listing
from airflow_provider_healthex.exceptions import HealthExConfigurationError

REQUESTED = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
NOW = REQUESTED + timedelta(seconds=1_000)
PATH = "d/*/{healthexPatientId}/"


def at(seconds: float) -> datetime:
    return REQUESTED + timedelta(seconds=seconds)


def expected(*ids: str, path: str = PATH, **rule) -> Expectation:
    patients = tuple(Patient(one, REQUESTED, f"e{one}") for one in ids)
    return Expectation((path,), {"projectId": "p"}, patients, ArrivalRule(**rule), wildcard=True)


def waiting_for(*ids: str, **changes) -> ArrivalWait:
    return ArrivalWait(expected(*ids, **changes), S3Listing)


class InS3:
    """The keys in a bucket."""

    def __init__(self, *keys: str) -> None:
        self.store = MemoryS3({key: (at(1), 0 if key.endswith("/") else 1) for key in keys}, NOW)
        self.listing = S3Listing


class OnSftp:
    """The keys as files."""

    def __init__(self, *keys: str) -> None:
        written = int(at(1).timestamp())
        self.store = MemorySftp(now=NOW.timestamp(), files={key: (1, written) for key in keys if not key.endswith("/")})
        self.listing = self.store.listing


@pytest.fixture(params=[InS3, OnSftp])
def store(request):
    return request.param


def arrived(store, expectation: Expectation) -> list[str]:
    wait = ArrivalWait(expectation, store.listing)
    store.store.poke(wait)
    return sorted(str(expectation.patients[index].patient_id) for index in wait.arrived)


def test_everything_is_listed_under_what_all_paths_begin_with():
    wait = waiting_for("a", "b", path="d/{projectId}/*/{healthexPatientId}/*.json")
    keys = {"d/p/x/a/1.json": at(1), "d/p/y/b/1.json": at(1), "d/p/y/b/1.xml": at(999), "d/p/y/c/1.json": NOW}
    s3 = MemoryS3(keys, NOW)
    assert s3.poke(wait).waiting is None
    assert s3.requests == [{"Prefix": "d/p/"}]


def test_ids_that_begin_alike_are_told_apart(store):
    expectation = expected("1", "1-2", path="d/{healthexPatientId}-x.*")
    assert arrived(store("d/1-2-x.json"), expectation) == ["1-2"]


def test_a_glob_that_fits_another_patients_files_counts_none_of_them(store):
    expectation = expected("1", "1-2", path="d/{healthexPatientId}-*/", quiet_period=0)
    assert arrived(store("d/1-2-x/a"), expectation) == []  # of either
    assert arrived(store("d/1-x/a"), expectation) == ["1"]


@pytest.mark.parametrize(
    ("key", "patient"),
    [
        ("d/x/a/1", "a"),
        ("d/x/a/deep/er/1", "a"),
        ("d/x/y/a/1", "a"),
        ("d/x/other/a/1", "a"),
        ("d/x/a/", None),
        ("d/a/1", None),
        ("d/x/aa/1", None),
        ("d/x/other/1", None),
        ("d/x/a/b/1", None),  # of either
    ],
)
def test_a_key_belongs_to_the_only_patient_it_fits(store, key, patient):
    assert arrived(store(key), expected("a", "b")) == ([patient] if patient else [])


def test_keys_that_fit_several_are_counted_in_one_warning(caplog):
    wait = waiting_for("a", "b")
    s3 = MemoryS3({"d/x/a/1": at(1), "d/x/a/b/1": at(1), "d/x/b/a/1": at(1), "d/x/y/other": at(1)}, NOW)
    for _ in range(3):
        s3.poke(wait)
    assert wait.missing == [1]
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
        "*/{externalId}/{healthexPatientId}/*",
    ],
)
def test_a_key_is_given_to_the_only_path_that_matches(path):
    """Compare with trying every patient."""
    ids = ("a", "b", "ab", "a-b", "b-a")
    wait = waiting_for(*ids, path=path)
    dice = random.Random(20261125)
    keys = {
        "".join(dice.choices(["a", "b", "ab", "-", "/", "x-", ".json", "ea", "eab"], k=n % 8 + 1)) for n in range(4_000)
    }
    s3 = MemoryS3({key: at(1) for key in keys if key[-1] != "/"}, NOW)
    s3.poke(wait)
    fits = {key: [i for i, (target,) in enumerate(wait.targets) if target.matches(key)] for key in s3.objects}
    counts = {i: sum(1 for found in fits.values() if found == [i]) for i in range(len(ids))}
    assert {i: one.object_count for i, one in wait.arrived.items()} == {i: n for i, n in counts.items() if n}


def test_a_long_key_of_another_path_takes_no_time():
    wait = waiting_for("a", "b", path="*/*/{healthexPatientId}/*/*.json")
    s3 = MemoryS3({"x/" * 500 + "end": at(1), "a/" * 500 + "end": at(1)}, NOW)
    started = time.monotonic()
    s3.poke(wait)
    assert time.monotonic() - started < 20


def test_a_marker_in_a_folder_of_several_patients_is_refused():
    with pytest.raises(HealthExConfigurationError, match="its folder belongs to several patients"):
        waiting_for("a", "b", path="d/*/x-{healthexPatientId}.json", marker="_SUCCESS")


def test_a_marker_in_a_patients_own_folder_is_theirs(store):
    expectation = expected("a", "b", path="d/*/{healthexPatientId}/*.json", marker="_SUCCESS")
    assert arrived(store("d/x/a/1.json", "d/x/a/_SUCCESS", "d/x/b/1.json"), expectation) == ["a"]
