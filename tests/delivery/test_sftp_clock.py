"""Be a server's clock right, hours behind or hours ahead: a fresh delivery arrives, never early; a stale one never."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from helpers.stores import MemorySftp, Poked, with_rule

from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient
from airflow_provider_healthex.delivery.sftp_requests import ListFolder

REQUESTED = datetime(2026, 11, 22, 12, 0, 0, tzinfo=timezone.utc)
AT = int(REQUESTED.timestamp())
HOUR = 3600
PATH = "d/{projectId}/{healthexPatientId}/"
COHORT = "d/{healthexPatientId}/"


def server(off: int = 0, now: float = AT + 10, **changes) -> MemorySftp:
    return MemorySftp(off, now, **changes)


def expected(*paths: str, wildcard: bool = False, patients: tuple[str, ...] = ("pat",), **rule) -> Expectation:
    awaited = tuple(Patient(each, REQUESTED, "e") for each in patients)
    rule = {"quiet_period": 0, "clock_skew": 60, **rule}
    return Expectation(paths or (PATH,), {"projectId": "p"}, awaited, ArrivalRule(**rule), wildcard)


class Wait:
    """A wait on servers, which may change."""

    def __init__(self, expectation: Expectation | None = None) -> None:
        self.expectation = expectation or expected()
        self.server = server()
        self.wait = ArrivalWait(self.expectation, lambda *arguments: self.server.listing(*arguments))
        self.wait.listing.now = lambda: self.server.now

    def poke(self, server: MemorySftp) -> Poked:
        self.server = server
        return server.poke(self.wait)

    def continued(self) -> Wait:
        """Return the wait as another process continues it."""
        again = Wait(Expectation.from_dict(json.loads(json.dumps(self.expectation.to_dict()))))
        again.wait.listing.restore(json.loads(json.dumps(self.wait.listing.to_dict())))
        return again


def poke_once(server: MemorySftp, expectation: Expectation | None = None) -> Poked:
    return Wait(expectation).poke(server)


@pytest.mark.parametrize("off", [0, -5 * HOUR, 9 * HOUR])
def test_what_is_written_while_a_slow_poke_lists_settles_as_long_as_after_a_fast_one(off):
    files, wait = server(off), Wait(expected(quiet_period=300))
    files.write("d/p/pat/old.json", ago=30 * 24 * HOUR)
    wait.poke(files)
    files.pass_time(60)
    answer = files.answer

    def slow(request: object) -> object:
        if isinstance(request, ListFolder):
            files.pass_time(290)
            files.write("d/p/pat/new.json")
        return answer(request)

    files.answer = slow
    assert wait.poke(files).waiting
    written, files.answer = files.now, answer
    for _ in range(20):
        if not wait.poke(files).waiting:
            break
        files.pass_time(20)
    assert 300 <= files.now - written < 400


@pytest.mark.parametrize("off", [0, -600, 600, -5 * HOUR, 9 * HOUR])
@pytest.mark.parametrize("quiet_period", [0, 300])
def test_what_is_written_between_pokes_arrives_after_its_quiet_period(off, quiet_period):
    files, wait = server(off), Wait(expected(quiet_period=quiet_period))
    files.write("d/p/pat/old.json", ago=30 * 24 * HOUR)
    assert "older than the request" in wait.poke(files).reason

    files.pass_time(60)
    files.write("d/p/pat/new.json")
    files.pass_time(30)
    written = files.now
    found = wait.poke(files)
    while found.waiting:
        assert files.now - written < quiet_period
        files.pass_time(60)
        found = wait.poke(files)

    assert found.keys == ["d/p/pat/new.json"]
    assert files.now - written >= quiet_period


@pytest.mark.parametrize("off", [-600, 600, -5 * HOUR, 9 * HOUR])
def test_a_delivery_of_shortly_before_the_request_never_arrives(off):
    files, wait = server(off), Wait()
    files.write("d/p/pat/old.json", ago=300)
    for _ in range(24):
        assert wait.poke(files).waiting
        files.pass_time(HOUR)


def test_a_delivery_between_the_request_and_the_first_poke_has_arrived():
    files = server(now=AT + 7200)
    files.write("d/p/pat/new.json", ago=3600)
    assert poke_once(files, expected(quiet_period=300)).keys == ["d/p/pat/new.json"]


def test_files_dated_after_the_first_poke_are_reported_and_not_counted():
    files = server(off=9 * HOUR)
    files.write("d/p/pat/a.json", ago=60)
    assert poke_once(files).reason.endswith(
        "; 1 dated after the first poke, so the server's clock seems to be ahead, and they will count only when they "
        "change"
    )


def test_the_clock_skew_is_allowed_for_on_both_sides():
    for dated in (AT - 60, AT + 10 + 60):
        files = server()
        files.write("d/p/pat/a.json", dated=dated)
        assert poke_once(files).keys
    for dated in (AT - 61, AT + 10 + 61):
        files = server()
        files.write("d/p/pat/a.json", dated=dated)
        assert poke_once(files).waiting


def test_an_overwrite_within_the_second_of_the_newest_is_seen_by_the_next_second():
    files, wait = server(off=-HOUR), Wait()
    files.write("d/p/pat/a.json")
    wait.poke(files)
    files.write("d/p/pat/a.json")
    assert wait.poke(files).waiting
    files.pass_time(1)
    files.write("d/p/pat/a.json")
    assert wait.poke(files).keys


@pytest.mark.parametrize("there", [[], ["d/p/pat/bundle.json"]])
def test_an_old_file_that_turns_up_is_no_arrival(there):
    """Out of an archive, or with a folder that was away; by a clock that is a day behind it could be new."""
    files, wait = server(), Wait()
    for path in there:
        files.write(path, ago=30 * 24 * HOUR)
    wait.poke(files)
    files.write("d/p/pat/archive/bundle-10.json", ago=20 * 24 * HOUR)
    files.write("d/p/pat/archive/bundle-11.json", ago=27 * HOUR)
    assert wait.poke(files).waiting


@pytest.mark.parametrize("later", ["d/a/", "d/b/"])
def test_of_several_paths_the_newest_file_of_all_is_remembered(later):
    files, wait = server(), Wait(expected("d/a/", "d/b/"))
    files.write("d/a/1", ago=20 * HOUR if later == "d/b/" else 40 * HOUR)
    files.write("d/b/1", ago=40 * HOUR if later == "d/b/" else 20 * HOUR)
    wait.poke(files)
    files.write(f"{later}2")
    assert wait.poke(files).waiting


def test_a_file_dated_in_the_future_holds_up_no_delivery():
    files, wait = server(), Wait()
    files.write("d/p/pat/wrong.json", dated=AT + 10 * 365 * 24 * HOUR)
    assert "no objects under" in wait.poke(files).reason
    files.pass_time(60)
    files.write("d/p/pat/a.json")
    assert wait.poke(files).keys == ["d/p/pat/a.json"]


def test_a_file_that_does_not_match_says_nothing_of_the_clock():
    files, wait = server(), Wait(expected("d/{healthexPatientId}-*.json", wildcard=True))
    files.write("d/pat-notes.txt", dated=AT + 10 * 365 * 24 * HOUR)
    wait.poke(files)
    files.pass_time(60)
    files.write("d/pat-1.json")
    assert wait.poke(files).keys == ["d/pat-1.json"]


def test_a_file_dated_in_the_future_that_is_only_moved_is_no_arrival():
    files, wait = server(off=9 * HOUR), Wait()
    files.write("d/p/pat/a.json", ago=60)
    wait.poke(files)
    files.rename("d/p/pat/a.json", "d/p/pat/archive/a.json")
    assert "dated after the first poke" in wait.poke(files).reason


def test_what_another_server_showed_says_nothing_of_this_one():
    """A connection that is corrected in the middle of a wait leads to other files, and to another clock."""
    wait = Wait()
    wait.poke(server())
    other = server(server="there")
    other.write("d/p/pat/a.json", ago=20 * HOUR)
    assert "older than the request" in wait.poke(other).reason
    assert "older than the request" in wait.poke(other).reason
    other.pass_time(60)
    other.write("d/p/pat/a.json")
    assert wait.poke(other).keys == ["d/p/pat/a.json"]


def test_many_files_dated_in_the_future_are_no_arrival_either():
    files, wait = server(off=9 * HOUR), Wait()
    for number in range(500):
        files.write(f"d/p/pat/{number}", ago=60)
    for _ in range(3):
        assert wait.poke(files).waiting
        files.pass_time(HOUR)
    assert len(json.dumps(wait.wait.listing.to_dict())) < 3_000


def test_with_a_large_skew_what_has_just_come_is_not_taken_for_settled():
    files = server(off=-5 * HOUR, now=AT + 3600)
    files.write("d/p/pat/a.json", ago=10)
    wait = Wait(expected(quiet_period=300, clock_skew=5 * HOUR))
    assert "290 s of 300 s left" in wait.poke(files).reason
    files.pass_time(300)
    assert wait.poke(files).keys


def test_another_process_continues_with_what_the_first_poke_showed():
    files, wait = server(off=-5 * HOUR), Wait()
    files.write("d/p/pat/a.json", ago=24 * HOUR)
    wait.poke(files)
    files.pass_time(60)
    files.write("d/p/pat/a.json")
    assert wait.continued().poke(files).keys


def test_another_process_continues_the_quiet_period():
    files, wait = server(off=-5 * HOUR), Wait(expected(quiet_period=300))
    wait.poke(files)
    files.pass_time(60)
    files.write("d/p/pat/a.json")
    wait.poke(files)
    files.pass_time(200)
    assert "100 s of 300 s left" in wait.continued().poke(files).reason


def test_the_quiet_period_of_what_was_there_at_the_first_poke_is_read_from_its_time():
    files = server(now=AT + 1000)
    files.write("d/p/pat/a", ago=200)
    found = poke_once(files, expected(quiet_period=300, clock_skew=10))
    assert "settling: 110 s of 300 s left" in found.reason


def test_the_times_of_a_result_are_the_servers():
    files, wait = server(off=-HOUR), Wait()
    wait.poke(files)
    files.pass_time(1)
    files.write("d/p/pat/a")
    found = wait.poke(files)
    (row,) = found.objects[0]
    assert row.last_modified == REQUESTED + timedelta(seconds=11) - timedelta(hours=1)
    assert found.arrived[0].last_modified == found.arrived[0].first_modified == row.last_modified


def test_whatever_the_clocks_and_the_order_nothing_stale_arrives_and_everything_fresh_does():
    for off, quiet, early in itertools.product((-7200, -90, 0, 90, 7200), (0, 120), (False, True)):
        files, wait = server(off), Wait(expected(quiet_period=quiet, min_objects=2))
        files.write("d/p/pat/old.json", ago=24 * HOUR)
        wait.poke(files)
        if early:
            files.pass_time(5)
        for name in ("1", "2"):
            files.pass_time(45)
            files.write(f"d/p/pat/{name}.json")
            found = wait.poke(files)
        for _ in range(4):
            if not found.waiting:
                break
            files.pass_time(60)
            found = wait.poke(files)
        assert found.keys == ["d/p/pat/1.json", "d/p/pat/2.json"], (off, quiet, early)


class TestACohort:
    """The server's clock is one for all, and what its first poke showed too; changes are each patient's own."""

    waiting = expected(COHORT, patients=("a", "b", "c"))

    @pytest.mark.parametrize("off", [-5 * HOUR, 0, 9 * HOUR])
    def test_each_patient_arrives_by_their_own_files(self, off):
        files, wait = server(off), Wait(self.waiting)
        for patient in "abc":
            files.write(f"d/{patient}/old.json", ago=HOUR)
        for number, patient in enumerate("bca", 1):
            found = wait.poke(files)
            assert found.reason.startswith(f"{number - 1} of 3 arrived, 0 settling, {4 - number} without")
            files.pass_time(60)
            files.write(f"d/{patient}/new.json")
        assert wait.poke(files).waiting is None
        assert {index: one.object_count for index, one in wait.wait.arrived.items()} == {0: 1, 1: 1, 2: 1}

    def test_each_patient_has_a_request_of_their_own(self):
        later = replace(self.waiting.patients[1], requested_at=REQUESTED + timedelta(hours=1))
        wait = Wait(replace(self.waiting, patients=(self.waiting.patients[0], later)))
        files = server(now=AT + 3 * HOUR)
        for patient in "ab":
            files.write(f"d/{patient}/1", dated=AT + HOUR / 2)
        wait.poke(files)
        assert wait.wait.missing == [1]

    def test_one_patients_files_show_the_clock_of_anothers(self):
        """Nothing of b was there at the first poke; a's old file shows that the server is hours behind."""
        files, wait = server(off=-5 * HOUR), Wait(expected(COHORT, patients=("a", "b")))
        files.write("d/a/old.json", ago=60)
        wait.poke(files)
        files.write("d/b/turned-up.json", ago=HOUR)
        wait.poke(files)
        assert wait.wait.missing == [0, 1]
        files.pass_time(60)
        files.write("d/b/new.json")
        wait.poke(files)
        assert wait.wait.missing == [0]

    def test_each_patient_settles_by_their_own_changes(self):
        files, wait = server(off=-5 * HOUR), Wait(with_rule(self.waiting, quiet_period=100))
        wait.poke(files)
        files.pass_time(1)
        files.write("d/a/1")
        for size in range(1, 4):
            files.write("d/b/1", size)
            wait.poke(files)
            files.pass_time(60)
        found = wait.poke(files)
        assert sorted(found.arrived) == [0]
        assert found.reason.startswith("1 of 3 arrived, 1 settling, 1 without")

    def test_only_a_patient_whose_files_still_change_is_waited_for(self):
        files, wait = server(), Wait(self.waiting)
        for patient in "abc":
            files.write(f"d/{patient}/1")
        files.meanwhile = lambda: files.write("d/b/2")
        found = wait.poke(files)
        assert wait.wait.missing == [1]
        assert found.reason == "2 fresh files, still changing between two listings"

    @pytest.mark.parametrize("off", [-5 * HOUR, 0, 9 * HOUR])
    @pytest.mark.parametrize("is_continued", [False, True])
    def test_a_patient_who_was_hidden_from_the_first_poke_is_not_early(self, off, is_continued):
        files, wait = server(off, links={"d/b"}), Wait(self.waiting)
        files.write("d/a/old.json", ago=24 * HOUR)
        assert wait.poke(files).reason.endswith(
            "; 1 patient can't be seen: a part of the path is a symbolic link on the server, which is not followed"
        )
        files.links.clear()
        files.write("d/b/old.json", dated=AT + off - 600)  # newer than all that the first poke saw
        files.pass_time(60)
        if is_continued:
            wait = wait.continued()
        for _ in range(3):
            assert wait.poke(files).waiting
            assert wait.wait.missing == [0, 1, 2]
            files.pass_time(HOUR)
        files.write("d/b/new.json")
        if is_continued:
            wait = wait.continued()
        files.pass_time(1)
        wait.poke(files)
        assert wait.wait.missing == [0, 2]

    def test_a_patient_who_is_hidden_holds_up_nobody(self):
        files, wait = server(-5 * HOUR, links={"d/b"}), Wait(self.waiting)
        files.write("d/a/old.json", ago=24 * HOUR)
        wait.poke(files)
        files.pass_time(60)
        for patient in "ac":
            files.write(f"d/{patient}/1")
        wait.poke(files)
        assert wait.wait.missing == [1]

    def test_a_patient_who_is_hidden_for_a_poke_goes_on_settling(self):
        files, wait = server(-5 * HOUR), Wait(expected(COHORT, patients=("a", "b"), quiet_period=300))
        wait.poke(files)
        files.pass_time(1)
        files.write("d/a/1")
        wait.poke(files)
        files.pass_time(150)
        files.links.add("d/a")
        wait.poke(files)
        files.links.clear()
        files.pass_time(150)
        wait.poke(files)
        assert wait.wait.missing == [1]

    def test_what_pokes_showed_of_a_patient_fits_a_triggers_arguments(self):
        ids = tuple(f"{number:024x}" for number in range(500))
        files, wait = server(), Wait(expected(COHORT, patients=ids, quiet_period=300))
        for each in ids:
            files.write(f"d/{each}/1")
        assert "500 settling" in wait.poke(files).reason
        text = json.dumps(wait.wait.listing.to_dict())
        assert len(text) < 60 * len(ids) + 200
        assert ids[1] not in text


def test_a_first_poke_that_sees_nothing_is_none():
    """Else every stale file would be newer than all that was there."""
    files, wait = server(links={"d/p"}), Wait()
    assert "symbolic link" in wait.poke(files).reason
    files.links.clear()
    files.write("d/p/pat/old.json", ago=HOUR)
    for _ in range(3):
        assert "older than the request" in wait.poke(files).reason
        files.pass_time(HOUR)
    files.write("d/p/pat/new.json")
    assert wait.poke(files).keys == ["d/p/pat/new.json"]


def test_an_obstacle_is_no_hint_that_the_path_is_wrong():
    assert poke_once(server(links={"d/p"})).waiting.unmatched == ()
