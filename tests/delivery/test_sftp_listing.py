"""Which requests show patients' files on an SFTP server, and what a poke makes of them, without a server."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone

import pytest
from helpers.stores import MemorySftp, Poked

from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient, Pause
from airflow_provider_healthex.delivery.sftp_listing import CONFIRMATION, WIDTH
from airflow_provider_healthex.delivery.sftp_requests import Entry, EntryType, ListFolder, NoSuchRoot, Server, Stat

REQUESTED = datetime(2026, 11, 22, 12, 0, 0, tzinfo=timezone.utc)
AT = int(REQUESTED.timestamp())
HOUR = 3600
PATH = "d/{projectId}/{healthexPatientId}/"


def server(off: int = 0, now: float = AT + 10, **changes) -> MemorySftp:
    return MemorySftp(off, now, **changes)


def expected(*paths: str, wildcard: bool = False, patients: tuple[str, ...] = ("pat",), **rule) -> Expectation:
    awaited = tuple(Patient(each, REQUESTED, "e") for each in patients)
    rule = {"quiet_period": 0, "clock_skew": 60, **rule}
    values = {"projectId": "p", "orgId": "o"}
    return Expectation(paths or (PATH,), values, awaited, ArrivalRule(**rule), wildcard)


def wait_on(files: MemorySftp, *paths: str, **changes) -> ArrivalWait:
    return ArrivalWait(expected(*paths, **changes), files.listing)


def poke(files: MemorySftp, *paths: str, **changes) -> Poked:
    """Check once, in a wait of its own."""
    return files.poke(wait_on(files, *paths, **changes))


def answer_with(files: MemorySftp, change) -> None:
    """Let ``change`` see each answer, and return another."""
    answer = files.answer
    files.answer = lambda request: change(request, answer(request))


def listed(files: MemorySftp) -> list[str]:
    return [each.path for each in files.requests if isinstance(each, ListFolder)]


class TestFilesBeingWritten:
    def test_a_growing_file_has_not_settled(self):
        files = server(off=-HOUR)
        wait = wait_on(files, quiet_period=120)
        files.poke(wait)
        for size in range(1, 6):
            files.pass_time(60)
            files.write("d/p/pat/a.json", size)
            assert files.poke(wait).waiting
        files.pass_time(120)
        assert files.poke(wait).keys

    @pytest.mark.parametrize("change", ["size", "time", "new", "gone"])
    def test_a_change_between_the_two_listings_is_waited_for(self, change):
        files = server()
        files.write("d/p/pat/a.json", 10)
        files.write("d/p/pat/b.json", 10)

        def meanwhile() -> None:
            if change == "size":
                files.files["d/p/pat/a.json"] = (20, files.files["d/p/pat/a.json"][1])
            elif change == "time":
                files.write("d/p/pat/a.json", 10)
            elif change == "new":
                files.write("d/p/pat/c.json", 10)
            else:
                del files.files["d/p/pat/a.json"]

        files.meanwhile = meanwhile
        assert "still changing between two listings" in poke(files).reason
        files.meanwhile = None
        assert poke(files).keys
        assert [each.seconds for each in files.requests if isinstance(each, Pause)] == [CONFIRMATION] * 2

    def test_a_delivery_that_vanishes_between_the_two_listings_has_not_arrived(self):
        files = server()
        files.write("d/p/pat/a.json")
        files.meanwhile = files.files.clear
        assert poke(files).reason == f"no objects under {PATH}"

    def test_nothing_is_listed_twice_where_nothing_has_arrived(self):
        files = server()
        poke(files)
        assert not [each for each in files.requests if isinstance(each, Pause)]

    @pytest.mark.parametrize("ending", [".part", ".filepart", ".tmp", ".FILEPART"])
    def test_a_half_written_name_is_not_counted_until_it_is_renamed(self, ending):
        files = server()
        wait = wait_on(files)
        files.write(f"d/p/pat/a.json{ending}")
        assert "no objects under" in files.poke(wait).reason
        files.rename(f"d/p/pat/a.json{ending}", "d/p/pat/a.json")
        assert files.poke(wait).keys == ["d/p/pat/a.json"]

    def test_a_half_written_file_that_grows_keeps_the_delivery_from_settling(self):
        files = server()
        wait = wait_on(files, quiet_period=100)
        files.poke(wait)
        files.write("d/p/pat/a.json")
        for size in range(1, 5):
            files.write("d/p/pat/b.json.part", size)
            assert files.poke(wait).waiting
            files.pass_time(90)
        files.rename("d/p/pat/b.json.part", "d/p/pat/b.json")
        assert files.poke(wait).waiting
        files.pass_time(100)
        assert files.poke(wait).keys == ["d/p/pat/a.json", "d/p/pat/b.json"]

    def test_another_patients_upload_holds_nothing_up(self):
        files = server()
        wait = wait_on(files, "d/*/x-{healthexPatientId}.json", wildcard=True, quiet_period=100)
        files.poke(wait)
        files.write("d/p/x-pat.json")
        for size in range(1, 4):
            files.write("d/p/x-other.json.part", size)
            found = files.poke(wait)
            files.pass_time(90)
        assert found.keys == ["d/p/x-pat.json"]

    def test_each_patients_upload_holds_up_their_own_delivery_where_folders_are_shared(self):
        files = server()
        path = "d/*/x-{healthexPatientId}-*.json"
        wait = wait_on(files, path, wildcard=True, quiet_period=100, patients=("a", "b"))
        files.poke(wait)
        for patient in "ab":
            files.write(f"d/p/x-{patient}-1.json")
        for size in range(1, 4):
            files.write("d/p/x-b-2.json.part", size)
            found = files.poke(wait)
            files.pass_time(90)
        assert sorted(found.arrived) == [0]

    def test_an_abandoned_half_written_file_holds_nothing_up(self):
        files = server(now=AT + 1000)
        files.write("d/p/pat/lost.json.part", ago=30 * 24 * HOUR)
        files.write("d/p/pat/a.json", ago=200)
        assert poke(files, quiet_period=100).keys == ["d/p/pat/a.json"]


class TestTheTree:
    def test_everything_below_the_path_is_found_and_nothing_beside_it(self):
        files = server()
        for path in ("d/p/pat/a", "d/p/pat/x/y/z", "d/p/pat2/a", "d/p/a", "d/q/pat/a"):
            files.write(path)
        assert poke(files).keys == ["d/p/pat/a", "d/p/pat/x/y/z"]

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
    def test_each_kind_of_path_finds_its_files(self, path, wildcard, found):
        files = server()
        for each in (
            *("pat/a", "pat/b/c", "pat.json", "pat2/a", "/srv/pat/a", "/pat/a", "d/p/pat.json", "d/p/pat.json.bak"),
            *("d/p/pat-1.json", "d/p/pat-x/2.json", "d/p/pat/no.json", "d/p/q/x-pat.json", "d/p/x-pat.json"),
            *("d/p/a-pat/1", "d/p/b-pat/1"),
        ):
            files.write(each)
        assert poke(files, path, wildcard=wildcard).keys == found

    def test_only_folders_that_can_hold_a_match_are_listed(self):
        files = server()
        for folder in ("pat-1", "pat-2", "other", "more"):
            files.write(f"d/p/{folder}/a.json")
        poke(files, "d/{projectId}/{healthexPatientId}-*.json", wildcard=True)
        assert set(listed(files)) == {"d/p/", "d/p/pat-1/", "d/p/pat-2/"}

    @pytest.mark.parametrize("link", ["d/p", "d/p/pat", "d/p/pat.json"])
    def test_a_link_in_the_variable_part_is_not_followed(self, link):
        files, path = server(links={link}), "d/{projectId}/{healthexPatientId}"
        files.write("d/other/a")
        assert "symbolic link" in poke(files, f"{path}.json" if link.endswith(".json") else f"{path}/").reason
        assert not listed(files)

    def test_a_link_among_the_files_is_passed_over(self):
        files = server(links={"d/p/pat/latest", "d/p/pat/elsewhere.json"})
        files.write("d/p/pat/a")
        assert poke(files).keys == ["d/p/pat/a"]

    @pytest.mark.parametrize("closer", [EntryType.OTHER, None])
    def test_a_link_that_is_listed_as_a_folder_is_not_followed(self, closer):
        files = server()
        files.write("d/p/pat/a")
        files.write("d/p/pat/latest/b")
        entry = closer and Entry("latest", closer)
        answer_with(files, lambda request, found: entry if request == Stat("d/p/pat/latest") else found)
        assert poke(files).keys == ["d/p/pat/a"]

    def test_what_a_listing_leaves_out_is_requested(self):
        files = server()
        files.write("d/p/pat/a")
        files.write("d/p/pat/x/b")

        def bare(request, found):
            if isinstance(request, ListFolder):
                return [Entry(each.name, EntryType.UNKNOWN) for each in found or ()]
            return found

        answer_with(files, bare)
        assert poke(files).keys == ["d/p/pat/a", "d/p/pat/x/b"]

    @pytest.mark.parametrize(
        ("path", "known", "why"),
        [
            (PATH, {"type": EntryType.UNKNOWN}, "does not report which entries are folders"),
            (PATH, {"modified": None}, "does not report when files were modified"),
            ("d/{projectId}/{healthexPatientId}/a", {"modified": None}, "does not report when files were modified"),
        ],
    )
    def test_a_server_that_does_not_report_what_is_needed_is_the_reason(self, path, known, why):
        files = server()
        files.write("d/p/pat/a")

        def bare(request, found):
            if isinstance(found, Entry):
                return found._replace(**known) if found.type is EntryType.FILE else found
            return [each._replace(**known) for each in found] if isinstance(found, list) else found

        answer_with(files, bare)
        assert why in poke(files, path).reason

    def test_a_first_folder_that_is_not_there_is_a_mistake_at_first_and_waited_for_later(self):
        files = server(folders=())
        wait = wait_on(files)
        with pytest.raises(NoSuchRoot, match="d/"):
            files.poke(wait)
        files.write("d/p/other/a")
        files.poke(wait)
        files.files.clear()
        assert "there is no folder d/ any more" in files.poke(wait).reason

    @pytest.mark.parametrize(
        ("path", "wildcard"),
        [
            ("nowhere/{healthexPatientId}.json", False),
            ("nowhere/{healthexPatientId}-*.json", True),
            ("nowhere/*/{healthexPatientId}/", True),
            ("d/a.json/{healthexPatientId}/", False),
        ],
    )
    def test_a_first_folder_that_is_a_file_is_a_mistake_for_every_kind_of_path(self, path, wildcard):
        files = server(folders=())
        files.files["nowhere"] = files.files["d"] = (1, AT)
        with pytest.raises(NoSuchRoot):
            poke(files, path, wildcard=wildcard)

    def test_a_literal_file_may_be_a_link(self):
        files = server()
        files.write("d/current.json")

        def follow(request, found):
            if isinstance(request, Stat) and request.path == "d/latest.json":
                return files.entry("d/current.json") if request.follow else Entry("latest.json", EntryType.OTHER)
            return found

        answer_with(files, follow)
        assert poke(files, "d/latest.json").keys == ["d/latest.json"]

    def test_a_literal_folder_may_be_a_link_also_below_another_path(self):
        files = server()
        files.write("d/latest/a")
        files.write("d/b")
        answer_with(
            files,
            lambda request, found: (
                [each._replace(type=EntryType.OTHER) if each.name == "latest" else each for each in found]
                if request == ListFolder("d/")
                else found
            ),
        )
        assert poke(files, "d/", "d/latest/").keys == ["d/b", "d/latest/a"]

    def test_a_server_that_does_not_report_what_is_a_folder_may_have_some(self):
        files = server()
        files.write("d/p/pat.json")
        answer_with(
            files,
            lambda request, found: found._replace(type=EntryType.UNKNOWN) if isinstance(found, Entry) else found,
        )
        assert poke(files, "d/{projectId}/{healthexPatientId}.json").keys == ["d/p/pat.json"]

    @pytest.mark.parametrize("path", ["{projectId}/", "d/", "bundle.json", "/"])
    def test_a_path_that_names_no_folder_above_itself_may_begin_with_nothing(self, path):
        assert "no objects" in poke(server(folders=()), path).reason

    def test_a_folder_that_vanishes_between_two_requests_is_empty(self):
        files = server()
        files.write("d/p/pat/a")
        files.write("d/p/pat/x/b")
        answer_with(files, lambda request, found: None if request == ListFolder("d/p/pat/x/") else found)
        assert poke(files).keys == ["d/p/pat/a"]

    def test_ten_thousand_files_in_one_folder_take_one_request(self):
        files = server()
        for number in range(10_000):
            files.files[f"d/p/pat/{number:05}"] = (1, AT)
        assert len(poke(files).keys) == 10_000
        assert listed(files) == ["d/p/pat/"] * 2

    def test_each_of_several_paths_is_needed(self):
        files = server()
        wait = wait_on(files, "d/a/", "d/b/")
        files.write("d/a/x")
        assert "no objects under d/b/" in files.poke(wait).reason
        files.write("d/b/x")
        assert files.poke(wait).keys == ["d/a/x", "d/b/x"]

    @pytest.mark.parametrize(
        ("paths", "wildcard"),
        [
            (("d/", "d/p/"), False),
            (("d/p/", "d/"), False),
            (("d/p/", "d/p/"), False),
            (("d/p/a", "d/p/a"), False),
            (("d/p/a", "d/p/"), False),
            (("d/p/a*", "d/p/a"), True),
        ],
    )
    def test_where_paths_overlap_a_file_is_one(self, paths, wildcard):
        files = server()
        files.write("d/p/a")
        assert "1 of at least 2 fresh objects" in poke(files, *paths, wildcard=wildcard, min_objects=2).reason
        assert poke(files, *paths, wildcard=wildcard).arrived[0].object_count == 1


def test_a_marker_ends_the_wait_without_a_quiet_period():
    files = server()
    wait = wait_on(files, quiet_period=300, marker="_SUCCESS")
    files.write("d/p/pat/_SUCCESS", ago=24 * HOUR)
    files.write("d/p/pat/a")
    assert "no fresh _SUCCESS" in files.poke(wait).reason
    files.pass_time(1)
    files.write("d/p/pat/_SUCCESS")
    assert files.poke(wait).keys == ["d/p/pat/a"]


class TestACohort:
    ids = tuple(f"patient-{number:04}" for number in range(1_000))

    def answering(self, *missing: str) -> MemorySftp:
        """Return a server where each patient has one fresh file, but for some."""
        files = server()
        folder = Entry("", EntryType.FOLDER)

        def answer(request):
            files.requests.append(request)
            if isinstance(request, (Pause, Server)):
                return None
            name = request.path.rstrip("/").rpartition("/")[2]
            if isinstance(request, Stat):
                return None if name in missing else folder
            return [Entry("a.json", EntryType.FILE, 2, AT + 1)]

        files.answer = answer
        return files

    def test_a_thousand_patients_are_listed_over_one_connection_side_by_side(self):
        files = self.answering(self.ids[500])
        wait = wait_on(files, patients=self.ids)
        found = files.poke(wait)
        assert wait.missing == [500]
        assert found.reason.startswith("999 of 1,000 arrived, 0 settling, 1 without a fresh object")
        assert max(files.batches) == WIDTH
        # Two listings of a stat and a folder for each; a batch ends when its slowest request does.
        assert len(files.batches) <= 2 * (2 * 1_000 / WIDTH + 5)

    def test_a_folder_above_several_patients_is_requested_once_a_listing(self):
        files = self.answering(*self.ids)
        files.poke(wait_on(files, "d/{orgId}/{projectId}/{healthexPatientId}/", patients=self.ids))
        counts = Counter(files.requests)
        assert set(counts.values()) == {1}
        shared = {Server(), Stat("d", follow=True), Stat("d/o"), Stat("d/o/p")}
        assert set(counts) == shared | {Stat(f"d/o/p/{each}") for each in self.ids}

    @pytest.mark.parametrize("found", [None, Entry("", EntryType.FILE)])
    def test_a_folder_above_several_patients_that_is_not_there_is_no_delivery(self, found):
        files = self.answering()
        answer_with(files, lambda request, entry: found if request == Stat("d/p") else entry)
        assert files.poke(wait_on(files, patients=self.ids)).reason.startswith("0 of 1,000 arrived")
        assert not listed(files)

    def test_a_folder_above_several_patients_that_is_a_link_hides_them(self):
        files = self.answering()
        answer_with(files, lambda request, entry: Entry("", EntryType.OTHER) if request == Stat("d/p") else entry)
        found = files.poke(wait_on(files, patients=self.ids))
        assert "; 1,000 patients can't be seen: a part of the path is a symbolic link" in found.reason
        assert not listed(files)

    def test_patients_who_have_arrived_are_not_listed_again(self):
        files = server()
        files.write("d/p/a/1")
        wait = wait_on(files, patients=("a", "b"))
        files.poke(wait)
        files.requests.clear()
        files.poke(wait)
        assert Stat("d/p/a") not in files.requests
        assert not listed(files)

    def test_a_shared_folder_is_listed_once_for_all(self):
        files = server()
        for patient in "abc":
            files.write(f"d/p/{patient}-1.json")
        wait = wait_on(files, "d/*/{healthexPatientId}-*.json", wildcard=True, patients=("a", "b", "c"))
        assert files.poke(wait).waiting is None
        assert listed(files) == ["d/", "d/p/"] * 2

    def test_every_folder_that_some_share_is_listed_once(self):
        """Two patients with one external id share a folder; the third's is another."""
        files = server()
        ids = (("a", "1"), ("b", "1"), ("c", "2"))
        for patient, external in ids:
            files.write(f"d/{external}/x/{patient}/1")
        patients = tuple(Patient(patient, REQUESTED, external) for patient, external in ids)
        rule = ArrivalRule(quiet_period=0, clock_skew=60)
        path = "d/{externalId}/*/{healthexPatientId}/"
        assert files.poke(ArrivalWait(Expectation((path,), {}, patients, rule, True), files.listing)).waiting is None
        assert sorted(listed(files)[: len(listed(files)) // 2]) == sorted(set(listed(files)))

    def test_an_obstacle_in_a_shared_folder_is_everybodys(self):
        files = server()
        files.write("d/p/a-1.json")
        answer_with(
            files,
            lambda request, found: (
                found._replace(modified=None)
                if isinstance(found, Entry)
                else found and [each._replace(modified=None) for each in found]
                if isinstance(request, ListFolder)
                else found
            ),
        )
        wait = wait_on(files, "d/*/{healthexPatientId}-*.json", wildcard=True, patients=("a", "b"))
        assert "; 2 patients can't be seen: the server does not report when" in files.poke(wait).reason
