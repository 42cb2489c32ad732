"""Listing each patient's newest object: with the requests of a poke, and by the storage's clock."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from helpers.stores import MemoryS3, MemorySftp

from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient
from airflow_provider_healthex.delivery.newest import newest_objects
from airflow_provider_healthex.delivery.s3_listing import S3Listing

NOW = datetime(2026, 11, 25, 12, tzinfo=timezone.utc)
EPOCH = datetime(1970, 1, 2, tzinfo=timezone.utc)


def wait(listing, *patient_ids: str, path: str = "d/{healthexPatientId}/", wildcard: bool = False) -> ArrivalWait:
    patients = tuple(Patient(each, EPOCH) for each in patient_ids)
    return ArrivalWait(Expectation((path,), {}, patients, ArrivalRule(), wildcard), listing)


def days(number: float) -> datetime:
    return NOW - timedelta(days=number)


def test_the_age_of_the_newest_object_is_by_the_stores_clock():
    bucket = MemoryS3({"d/a/1": days(3), "d/a/2": days(2), "d/c/": (days(0), 0), "d/x/1": days(0)}, NOW)
    seen = bucket.run(newest_objects(wait(S3Listing, "a", "b", "c")))
    assert {index: (one.last_modified, one.age) for index, one in seen.found.items()} == {0: (days(2), 2 * 86_400)}
    assert (seen.hidden, seen.remark) == ({}, "")


def test_a_large_bucket_takes_the_requests_of_one_poke():
    objects = {f"d/p{patient:04}/{file}": days(1) for patient in range(500) for file in range(4)}
    objects |= {f"d/q/{number:06}": days(1) for number in range(20_000)}
    bucket = MemoryS3(objects, NOW)
    seen = bucket.run(newest_objects(wait(S3Listing, *(f"p{patient:04}" for patient in range(500)))))
    assert len(seen.found) == 500
    assert len(bucket.requests) == 2


def test_a_glob_before_the_patient_is_listed_once():
    bucket = MemoryS3({"d/2026-11-20/a/1": days(5), "d/2026-11-24/a/1": days(1), "d/2026-11-24/b/1": days(1)}, NOW)
    seen = bucket.run(newest_objects(wait(S3Listing, "a", "c", path="d/*/{healthexPatientId}/", wildcard=True)))
    assert {index: one.last_modified for index, one in seen.found.items()} == {0: days(1)}
    assert len(bucket.requests) == 1


def test_by_sftp_an_age_is_less_by_the_seconds_that_the_clock_may_be_off():
    server = MemorySftp(now=NOW.timestamp())
    server.write("d/a/1", ago=500)
    server.write("d/a/2", ago=100)
    server.write("d/a/3.filepart", ago=400)
    seen = server.run(newest_objects(wait(server.listing, "a", "b")))
    assert {index: one.age for index, one in seen.found.items()} == {0: 98}


def test_by_sftp_a_patient_whose_files_cannot_be_seen_is_hidden():
    server = MemorySftp(now=NOW.timestamp(), links={"d/b"})
    server.write("d/a/1", ago=500)
    seen = server.run(newest_objects(wait(server.listing, "a", "b")))
    assert (list(seen.found), list(seen.hidden)) == ([0], [1])
    assert "can't be seen" in seen.remark


def test_by_sftp_a_file_dated_after_now_is_not_counted_and_remarked():
    server = MemorySftp(now=NOW.timestamp())
    server.write("d/a/1", dated=server.now + 3600)
    seen = server.run(newest_objects(wait(server.listing, "a", "b")))
    assert seen.found == {}
    assert "dated after the first poke" in seen.remark
