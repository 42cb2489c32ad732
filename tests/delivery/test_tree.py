"""What a folder tree on a server with an unknown clock shows, decided without a server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone

import pytest
from airflow_provider_healthex.delivery.tree import (
    CONFIRMATION,
    Entry,
    Folder,
    NoSuchRoot,
    Pause,
    Sort,
    Stat,
    Watch,
    Whereabouts,
    look_at_tree,
)

from airflow_provider_healthex.delivery import Arrived, Expectation, Waiting, expand

REQUESTED = datetime(2026, 11, 22, 12, 0, 0, tzinfo=timezone.utc)
AT = int(REQUESTED.timestamp())
HOUR = 3600
PATH = "d/{projectId}/{healthexPatientId}/"
VALUES = {"projectId": "p", "healthexPatientId": "pat", "orgId": "o", "externalId": "e"}


@dataclass
class Server:
    """A tree in memory and its two clocks: ``now`` is ours, and files are dated by ``now + off``."""

    off: int = 0
    now: float = AT + 10
    files: dict[str, tuple[int, int]] = field(default_factory=dict)  # path: size, time
    links: set[str] = field(default_factory=set)
    folders: tuple[str, ...] = ("d",)  # that are there without a file
    where: str = "here"
    asked: list[object] = field(default_factory=list)
    meanwhile: Callable[[], None] | None = None  # happens between the two listings

    def write(self, path: str, size: int = 2, *, ago: float = 0, dated: float | None = None) -> None:
        self.files[path] = (size, int(self.now + self.off - ago if dated is None else dated))

    def entry(self, path: str) -> Entry | None:
        name = path.rpartition("/")[2]
        if path in self.links:
            return Entry(name, Sort.OTHER)
        if path in self.files:
            return Entry(name, Sort.FILE, *self.files[path])
        below = path in self.folders or any(each.startswith(f"{path}/") for each in (*self.files, *self.links))
        return Entry(name, Sort.FOLDER, 4096, int(self.now)) if below else None

    def answer(self, request: object) -> object:
        self.asked.append(request)
        if isinstance(request, Pause):
            self.now += request.seconds
            if self.meanwhile:
                self.meanwhile()
            return None
        if isinstance(request, Whereabouts):
            return self.where
        if isinstance(request, Stat):
            return self.entry(request.path)
        assert isinstance(request, Folder)
        below = {each[len(request.path) :] for each in (*self.files, *self.links) if each.startswith(request.path)}
        names = {each.partition("/")[0] for each in below if each}
        return [self.entry(request.path + name) for name in sorted(names)] or None

    def look(self, expectation: Expectation, watch: Watch) -> Arrived | Waiting:
        steps, answer = look_at_tree(expectation, watch, clock=lambda: self.now), None
        try:
            while True:
                answer = self.answer(steps.send(answer))
        except StopIteration as end:
            return end.value

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


def expected(path: str = PATH, *, wildcard: bool = False, **changes: object) -> Expectation:
    fields = {"targets": (expand(path, VALUES, wildcard=wildcard),), "since": REQUESTED, "clock_skew": 60, **changes}
    return Expectation(**{"quiet_period": 0, **fields})  # type: ignore[arg-type]


def keys(verdict: Arrived | Waiting) -> list[str]:
    assert isinstance(verdict, Arrived), verdict
    return [each.key for each in verdict.objects]


def reason(verdict: Arrived | Waiting) -> str:
    assert isinstance(verdict, Waiting), verdict
    return verdict.reason


class TestTheServersClock:
    """Whether it is right, hours behind or hours ahead, a delivery arrives and an old one doesn't."""

    @pytest.mark.parametrize("off", [0, -600, 600, -5 * HOUR, 9 * HOUR])
    @pytest.mark.parametrize("quiet_period", [0, 300])
    def test_what_is_written_under_our_eyes_arrives_after_its_quiet(self, off, quiet_period):
        server, watch, wait = Server(off), Watch(), expected(quiet_period=quiet_period)
        server.write("d/p/pat/old.json", ago=30 * 24 * HOUR)
        assert "older than the request" in reason(server.look(wait, watch))

        server.pass_time(60)
        server.write("d/p/pat/new.json")
        server.pass_time(30)
        written = server.now
        verdict = server.look(wait, watch)
        while isinstance(verdict, Waiting):
            assert server.now - written < quiet_period
            server.pass_time(60)
            verdict = server.look(wait, watch)

        assert keys(verdict) == ["d/p/pat/new.json"]
        assert server.now - written >= quiet_period

    @pytest.mark.parametrize("off", [-600, 600, -5 * HOUR, 9 * HOUR])
    def test_a_delivery_of_shortly_before_the_request_never_arrives(self, off):
        server, watch, wait = Server(off), Watch(), expected()
        server.write("d/p/pat/old.json", ago=300)
        for _ in range(24):
            assert isinstance(server.look(wait, watch), Waiting)
            server.pass_time(HOUR)

    def test_a_delivery_between_the_request_and_the_first_look_has_arrived(self):
        server = Server(now=AT + 7200)
        server.write("d/p/pat/new.json", ago=3600)
        assert keys(server.look(expected(quiet_period=300), Watch())) == ["d/p/pat/new.json"]

    def test_files_dated_after_the_first_look_are_told_of_and_not_counted(self):
        server = Server(off=9 * HOUR)
        server.write("d/p/pat/a.json", ago=60)
        assert "the server's clock seems to be ahead" in reason(server.look(expected(), Watch()))

    def test_the_skew_is_allowed_for_on_both_sides(self):
        for dated in (AT - 60, AT + 10 + 60):
            server = Server()
            server.write("d/p/pat/a.json", dated=dated)
            assert keys(server.look(expected(), Watch()))
        for dated in (AT - 61, AT + 10 + 61):
            server = Server()
            server.write("d/p/pat/a.json", dated=dated)
            assert isinstance(server.look(expected(), Watch()), Waiting)

    def test_an_overwrite_within_the_second_of_the_newest_is_seen_by_the_next_second(self):
        server, watch = Server(off=-HOUR), Watch()
        server.write("d/p/pat/a.json")
        server.look(expected(), watch)
        server.write("d/p/pat/a.json")
        assert isinstance(server.look(expected(), watch), Waiting)
        server.pass_time(1)
        server.write("d/p/pat/a.json")
        assert keys(server.look(expected(), watch))

    @pytest.mark.parametrize("there", [[], ["d/p/pat/bundle.json"]])
    def test_an_old_file_that_turns_up_is_no_arrival(self, there):
        """Out of an archive, or with a folder that was away; by a clock that is a day behind it could be new."""
        server, watch = Server(), Watch()
        for path in there:
            server.write(path, ago=30 * 24 * HOUR)
        server.look(expected(), watch)
        server.write("d/p/pat/archive/bundle-10.json", ago=20 * 24 * HOUR)
        server.write("d/p/pat/archive/bundle-11.json", ago=27 * HOUR)
        assert isinstance(server.look(expected(), watch), Waiting)

    @pytest.mark.parametrize("later", ["d/a/", "d/b/"])
    def test_of_several_paths_the_newest_file_of_all_is_remembered(self, later):
        server, watch = Server(), Watch()
        both = replace(expected(), targets=tuple(expand(f"d/{name}/", VALUES) for name in ("a", "b")))
        server.write("d/a/1", ago=20 * HOUR if later == "d/b/" else 40 * HOUR)
        server.write("d/b/1", ago=40 * HOUR if later == "d/b/" else 20 * HOUR)
        server.look(both, watch)
        server.write(f"{later}2")
        assert isinstance(server.look(both, watch), Waiting)

    def test_a_file_dated_in_the_future_holds_up_no_delivery(self):
        server, watch = Server(), Watch()
        server.write("d/p/pat/wrong.json", dated=AT + 10 * 365 * 24 * HOUR)
        assert "no objects under" in reason(server.look(expected(), watch))
        server.pass_time(60)
        server.write("d/p/pat/a.json")
        assert keys(server.look(expected(), watch)) == ["d/p/pat/a.json"]

    def test_what_does_not_match_tells_nothing_of_the_clock(self):
        server, watch, wait = Server(), Watch(), expected("d/{healthexPatientId}-*.json", wildcard=True)
        server.write("d/pat-notes.txt", dated=AT + 10 * 365 * 24 * HOUR)
        server.look(wait, watch)
        server.pass_time(60)
        server.write("d/pat-1.json")
        assert keys(server.look(wait, watch)) == ["d/pat-1.json"]

    def test_a_file_dated_in_the_future_that_is_only_moved_is_no_arrival(self):
        server, watch = Server(off=9 * HOUR), Watch()
        server.write("d/p/pat/a.json", ago=60)
        server.look(expected(), watch)
        server.files["d/p/pat/archive/a.json"] = server.files.pop("d/p/pat/a.json")
        assert "dated after the first look" in reason(server.look(expected(), watch))

    def test_what_another_server_showed_says_nothing_of_this_one(self):
        """Who corrects the connection in the middle of a wait finds other files, and another clock."""
        watch = Watch()
        Server().look(expected(), watch)
        other = Server(where="there")
        other.write("d/p/pat/a.json", ago=20 * HOUR)
        assert "older than the request" in reason(other.look(expected(), watch))
        assert "older than the request" in reason(other.look(expected(), watch))
        other.pass_time(60)
        other.write("d/p/pat/a.json")
        assert keys(other.look(expected(), watch)) == ["d/p/pat/a.json"]

    def test_many_files_dated_in_the_future_are_no_arrival_either(self):
        server, watch = Server(off=9 * HOUR), Watch()
        for number in range(500):
            server.write(f"d/p/pat/{number}", ago=60)
        for _ in range(3):
            assert isinstance(server.look(expected(), watch), Waiting)
            server.pass_time(HOUR)
        assert len(json.dumps(watch.to_dict())) < 3_000

    def test_with_a_large_skew_what_has_just_come_is_not_taken_for_quiet(self):
        server = Server(off=-5 * HOUR, now=AT + 3600)
        server.write("d/p/pat/a.json", ago=10)
        wait = expected(quiet_period=300, clock_skew=5 * HOUR)
        watch = Watch()
        assert "290 s of 300 s left" in reason(server.look(wait, watch))
        server.pass_time(300)
        assert keys(server.look(wait, watch))

    def test_another_process_goes_on_with_what_the_first_look_showed(self):
        server, watch = Server(off=-5 * HOUR), Watch()
        server.write("d/p/pat/a.json", ago=24 * HOUR)
        server.look(expected(), watch)
        server.pass_time(60)
        server.write("d/p/pat/a.json")
        carried = Watch()
        carried.recall(json.loads(json.dumps(watch.to_dict())))
        assert keys(server.look(expected(), carried))


class TestFilesBeingWritten:
    def test_a_growing_file_is_not_quiet(self):
        server, watch, wait = Server(off=-HOUR), Watch(), expected(quiet_period=120)
        server.look(wait, watch)
        for size in range(1, 6):
            server.pass_time(60)
            server.write("d/p/pat/a.json", size)
            assert isinstance(server.look(wait, watch), Waiting)
        server.pass_time(120)
        assert keys(server.look(wait, watch))

    @pytest.mark.parametrize("change", ["size", "time", "new", "gone"])
    def test_what_changes_between_the_two_listings_is_not_believed(self, change):
        server = Server()
        server.write("d/p/pat/a.json", 10)
        server.write("d/p/pat/b.json", 10)

        def meanwhile() -> None:
            if change == "size":
                server.files["d/p/pat/a.json"] = (20, server.files["d/p/pat/a.json"][1])
            elif change == "time":
                server.write("d/p/pat/a.json", 10)
            elif change == "new":
                server.write("d/p/pat/c.json", 10)
            else:
                del server.files["d/p/pat/a.json"]

        server.meanwhile = meanwhile
        assert "still changing" in reason(server.look(expected(), Watch()))
        server.meanwhile = None
        assert keys(server.look(expected(), Watch()))
        assert [each.seconds for each in server.asked if isinstance(each, Pause)] == [CONFIRMATION] * 2

    @pytest.mark.parametrize("ending", [".part", ".filepart", ".tmp", ".FILEPART"])
    def test_a_half_written_name_is_not_counted_until_it_is_renamed(self, ending):
        server, watch, wait = Server(), Watch(), expected()
        server.write(f"d/p/pat/a.json{ending}")
        assert "no objects under" in reason(server.look(wait, watch))
        server.files["d/p/pat/a.json"] = server.files.pop(f"d/p/pat/a.json{ending}")
        assert keys(server.look(wait, watch)) == ["d/p/pat/a.json"]

    def test_a_half_written_file_that_grows_keeps_the_delivery_from_being_quiet(self):
        server, watch, wait = Server(), Watch(), expected(quiet_period=100)
        server.look(wait, watch)
        server.write("d/p/pat/a.json")
        for size in range(1, 5):
            server.write("d/p/pat/b.json.part", size)
            assert isinstance(server.look(wait, watch), Waiting)
            server.pass_time(90)
        server.files["d/p/pat/b.json"] = server.files.pop("d/p/pat/b.json.part")
        assert isinstance(server.look(wait, watch), Waiting)
        server.pass_time(100)
        assert keys(server.look(wait, watch)) == ["d/p/pat/a.json", "d/p/pat/b.json"]

    def test_another_patients_upload_holds_nothing_up(self):
        server, watch, wait = Server(), Watch(), expected("d/*/x-{healthexPatientId}.json", wildcard=True)
        wait = replace(wait, quiet_period=100)
        server.look(wait, watch)
        server.write("d/p/x-pat.json")
        for size in range(1, 4):
            server.write("d/p/x-other.json.part", size)
            verdict = server.look(wait, watch)
            server.pass_time(90)
        assert keys(verdict) == ["d/p/x-pat.json"]

    def test_an_abandoned_half_written_file_holds_nothing_up(self):
        server, wait = Server(now=AT + 1000), expected(quiet_period=100)
        server.write("d/p/pat/lost.json.part", ago=30 * 24 * HOUR)
        server.write("d/p/pat/a.json", ago=200)
        assert keys(server.look(wait, Watch())) == ["d/p/pat/a.json"]


class TestTheTree:
    def test_everything_below_the_path_is_found_and_nothing_beside_it(self):
        server = Server()
        for path in ("d/p/pat/a", "d/p/pat/x/y/z", "d/p/pat2/a", "d/p/a", "d/q/pat/a"):
            server.write(path)
        assert keys(server.look(expected(), Watch())) == ["d/p/pat/a", "d/p/pat/x/y/z"]

    @pytest.mark.parametrize(
        ("path", "wildcard", "found"),
        [
            ("{healthexPatientId}/", False, ["pat/a", "pat/b/c"]),
            ("/srv/{healthexPatientId}/", False, ["/srv/pat/a"]),
            ("/{healthexPatientId}/", False, ["/pat/a"]),
            ("d/{projectId}/{healthexPatientId}.json", False, ["d/p/pat.json"]),
            ("{healthexPatientId}.json", False, ["pat.json"]),
            ("d/{projectId}/{healthexPatientId}-*.json", True, ["d/p/pat-1.json", "d/p/pat-x/2.json"]),
            ("d/*/x-{healthexPatientId}.json", True, ["d/p/q/x-pat.json", "d/p/x-pat.json"]),
            ("d/{projectId}/[a]-{healthexPatientId}/", True, ["d/p/a-pat/1"]),
        ],
    )
    def test_each_kind_of_path(self, path, wildcard, found):
        server = Server()
        for each in (
            *("pat/a", "pat/b/c", "pat.json", "pat2/a", "/srv/pat/a", "/pat/a", "d/p/pat.json", "d/p/pat.json.bak"),
            *("d/p/pat-1.json", "d/p/pat-x/2.json", "d/p/pat/no.json", "d/p/q/x-pat.json", "d/p/x-pat.json"),
            *("d/p/a-pat/1", "d/p/b-pat/1"),
        ):
            server.write(each)
        assert keys(server.look(expected(path, wildcard=wildcard), Watch())) == found

    def test_only_folders_that_can_hold_a_match_are_listed(self):
        server = Server()
        for folder in ("pat-1", "pat-2", "other", "more"):
            server.write(f"d/p/{folder}/a.json")
        server.look(expected("d/{projectId}/{healthexPatientId}-*.json", wildcard=True), Watch())
        assert {each.path for each in server.asked if isinstance(each, Folder)} == {"d/p/", "d/p/pat-1/", "d/p/pat-2/"}

    @pytest.mark.parametrize("link", ["d/p", "d/p/pat", "d/p/pat.json"])
    def test_a_link_in_the_variable_part_is_not_followed(self, link):
        server, kind = Server(links={link}), "d/{projectId}/{healthexPatientId}"
        server.write("d/other/a")
        path = f"{kind}.json" if link.endswith(".json") else f"{kind}/"
        assert "symbolic link" in reason(server.look(expected(path), Watch()))
        assert not [each for each in server.asked if isinstance(each, Folder)]

    def test_a_link_among_the_files_is_passed_over(self):
        server = Server(links={"d/p/pat/latest", "d/p/pat/elsewhere.json"})
        server.write("d/p/pat/a")
        assert keys(server.look(expected(), Watch())) == ["d/p/pat/a"]

    @pytest.mark.parametrize("closer", [Sort.OTHER, None])
    def test_a_link_that_is_listed_as_a_folder_is_not_followed(self, closer):
        server = Server()
        server.write("d/p/pat/a")
        server.write("d/p/pat/latest/b")
        found = closer and Entry("latest", closer)
        answer = server.answer
        server.answer = lambda request: found if request == Stat("d/p/pat/latest") else answer(request)  # type: ignore[method-assign]
        assert keys(server.look(expected(), Watch())) == ["d/p/pat/a"]

    def test_what_a_listing_leaves_out_is_asked_for(self):
        server = Server()
        server.write("d/p/pat/a")
        server.write("d/p/pat/x/b")
        answer = server.answer

        def bare(request: object) -> object:
            found = answer(request)
            return [Entry(each.name, Sort.UNTOLD) for each in found or ()] if isinstance(request, Folder) else found

        server.answer = bare  # type: ignore[method-assign]
        assert keys(server.look(expected(), Watch())) == ["d/p/pat/a", "d/p/pat/x/b"]

    @pytest.mark.parametrize(
        ("path", "told", "why"),
        [
            (PATH, {"sort": Sort.UNTOLD}, "does not tell files from folders"),
            (PATH, {"modified": None}, "does not tell when files were modified"),
            ("d/{projectId}/{healthexPatientId}/a", {"modified": None}, "does not tell when files were modified"),
        ],
    )
    def test_a_server_that_does_not_tell_what_is_needed_is_named_as_the_reason(self, path, told, why):
        server = Server()
        server.write("d/p/pat/a")
        answer = server.answer

        def bare(request: object) -> object:
            found = answer(request)
            if isinstance(found, Entry):
                return found._replace(**told) if found.sort is Sort.FILE else found
            return [each._replace(**told) for each in found] if isinstance(found, list) else found

        server.answer = bare  # type: ignore[method-assign]
        assert why in reason(server.look(expected(path), Watch()))

    def test_a_first_folder_that_is_not_there_is_a_mistake_at_first_and_waited_for_later(self):
        server, watch = Server(folders=()), Watch()
        with pytest.raises(NoSuchRoot, match="d/"):
            server.look(expected(), watch)
        server.write("d/p/other/a")
        server.look(expected(), watch)
        server.files.clear()
        assert "no folder d/" in reason(server.look(expected(), watch))

    @pytest.mark.parametrize(
        ("path", "wildcard"),
        [
            ("nowhere/{healthexPatientId}.json", False),
            ("nowhere/{healthexPatientId}-*.json", True),
            ("nowhere/*/{healthexPatientId}/", True),
            ("d/a.json/{healthexPatientId}/", False),
        ],
    )
    def test_a_first_folder_that_is_none_is_a_mistake_for_every_kind_of_path(self, path, wildcard):
        server = Server(folders=())
        server.files["nowhere"] = server.files["d"] = (1, AT)
        with pytest.raises(NoSuchRoot):
            server.look(expected(path, wildcard=wildcard), Watch())

    def test_a_literal_file_may_be_a_link(self):
        server = Server()
        server.write("d/current.json")
        answer = server.answer

        def follow(request: object) -> object:
            if isinstance(request, Stat) and request.path == "d/latest.json":
                return server.entry("d/current.json") if request.follow else Entry("latest.json", Sort.OTHER)
            return answer(request)

        server.answer = follow  # type: ignore[method-assign]
        assert keys(server.look(expected("d/latest.json"), Watch())) == ["d/latest.json"]

    def test_a_server_that_does_not_say_what_is_a_folder_is_believed_to_have_some(self):
        server = Server()
        server.write("d/p/pat.json")
        answer = server.answer

        def untold(request: object) -> object:
            found = answer(request)
            return found._replace(sort=Sort.UNTOLD) if isinstance(found, Entry) else found

        server.answer = untold  # type: ignore[method-assign]
        path = "d/{projectId}/{healthexPatientId}.json"
        assert keys(server.look(expected(path), Watch())) == ["d/p/pat.json"]

    @pytest.mark.parametrize("path", ["{projectId}/", "d/", "bundle.json", "/"])
    def test_a_path_that_names_no_folder_above_itself_may_begin_with_nothing(self, path):
        assert "no objects" in reason(Server(folders=()).look(expected(path), Watch()))

    def test_a_folder_that_vanishes_between_two_requests_is_empty(self):
        server = Server()
        server.write("d/p/pat/a")
        server.write("d/p/pat/x/b")
        answer = server.answer
        server.answer = lambda request: None if request == Folder("d/p/pat/x/") else answer(request)  # type: ignore[method-assign]
        assert keys(server.look(expected(), Watch())) == ["d/p/pat/a"]

    def test_ten_thousand_files_in_one_folder_take_one_request(self):
        server = Server()
        for number in range(10_000):
            server.files[f"d/p/pat/{number:05}"] = (1, AT)
        assert len(keys(server.look(expected(), Watch()))) == 10_000
        assert sum(isinstance(each, Folder) for each in server.asked) == 2

    def test_a_list_of_paths_needs_each(self):
        server, watch = Server(), Watch()
        both = replace(expected(), targets=tuple(expand(f"d/{name}/", VALUES) for name in ("a", "b")))
        server.write("d/a/x")
        assert "no objects under d/b/" in reason(server.look(both, watch))
        server.write("d/b/x")
        assert keys(server.look(both, watch)) == ["d/a/x", "d/b/x"]


def test_a_marker_ends_the_wait_without_quiet():
    server, watch, wait = Server(), Watch(), expected(quiet_period=300, marker="_SUCCESS")
    server.write("d/p/pat/_SUCCESS", ago=24 * HOUR)
    server.write("d/p/pat/a")
    assert "no fresh _SUCCESS" in reason(server.look(wait, watch))
    server.pass_time(1)
    server.write("d/p/pat/_SUCCESS")
    assert keys(server.look(wait, watch)) == ["d/p/pat/a"]


def test_whatever_the_clocks_and_the_order_nothing_old_arrives_and_everything_new_does():
    for off, quiet, early in itertools.product((-7200, -90, 0, 90, 7200), (0, 120), (False, True)):
        server, watch, wait = Server(off), Watch(), expected(quiet_period=quiet, min_objects=2)
        server.write("d/p/pat/old.json", ago=24 * HOUR)
        server.look(wait, watch)
        if early:
            server.pass_time(5)
        for name in ("1", "2"):
            server.pass_time(45)
            server.write(f"d/p/pat/{name}.json")
            verdict = server.look(wait, watch)
        for _ in range(4):
            if isinstance(verdict, Arrived):
                break
            server.pass_time(60)
            verdict = server.look(wait, watch)
        assert keys(verdict) == ["d/p/pat/1.json", "d/p/pat/2.json"], (off, quiet, early)


def test_the_quiet_of_what_was_there_at_the_first_look_is_read_from_its_time():
    server = Server(now=AT + 1000)
    server.write("d/p/pat/a", ago=200)
    verdict = server.look(expected(quiet_period=300, clock_skew=10), Watch())
    assert "settling: 110 s of 300 s left" in reason(verdict)


def test_the_times_that_are_told_are_the_servers():
    server, watch = Server(off=-HOUR), Watch()
    server.look(expected(), watch)
    server.pass_time(1)
    server.write("d/p/pat/a")
    (row,) = server.look(expected(), watch).objects  # type: ignore[union-attr]
    assert row.last_modified == REQUESTED + timedelta(seconds=11) - timedelta(hours=1)
