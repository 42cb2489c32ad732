"""Announcing every delivery once, in whatever order they settle, over any restart."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta, timezone

import pytest
from helpers.stores import MemoryS3, MemorySftp

from airflow_provider_healthex.delivery import feed as module
from airflow_provider_healthex.delivery.feed import Announced, Feed, seconds
from airflow_provider_healthex.delivery.sftp_requests import Entry, EntryType, ListFolder, Server
from airflow_provider_healthex.delivery.sources import S3Source, SftpSource
from airflow_provider_healthex.exceptions import HealthExConfigurationError

START = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
FEED = Feed("d/{projectId}/{healthexPatientId}/", 300)


def at(moment: float) -> datetime:
    return START + timedelta(seconds=moment)


class World:
    """A bucket, a clock and a feed whose state goes through JSON at every poll, as with a restart."""

    def __init__(self, feed: Feed = FEED, since: datetime = START) -> None:
        self.s3, self.feed, self.announced = MemoryS3({}, START), feed, Announced.since(since)

    def put(self, patient: str, moment: float, name: str = "1") -> None:
        self.s3.objects[f"d/p/{patient}/{name}"] = at(moment)

    def poll(self, moment: float) -> list[tuple[str, int, float]]:
        self.s3.now = at(moment)
        found, self.announced = self.s3.run(self.feed.poke(self.announced, S3Source()))
        self.announced = Announced.from_dict(json.loads(json.dumps(self.announced.to_dict())))
        return [
            (one.values["healthexPatientId"], one.object_count, (one.last_modified - START).total_seconds())
            for one in found
        ]


def test_a_delivery_is_announced_when_it_has_settled_and_never_again():
    world = World()
    world.put("a", 10)
    assert world.poll(309) == []
    assert world.poll(310) == [("a", 1, 10)]
    assert world.poll(311) == []
    assert world.poll(90_000) == []


def test_what_was_there_before_the_start_is_not_announced():
    world = World()
    world.put("a", -1)
    world.put("b", 0)
    assert world.poll(1_000) == [("b", 1, 0)]


def test_one_that_began_earlier_and_ended_later_is_announced_whole():
    world = World()
    world.put("a", 10)
    for number, moment in enumerate(range(5, 400, 100)):
        world.put("b", moment, str(number))
    assert world.poll(310) == [("a", 1, 10)]
    world.put("b", 400, "last")
    assert world.poll(699) == []
    assert world.poll(700) == [("b", 5, 400)]


def test_a_patients_next_delivery_is_another():
    world = World()
    world.put("a", 10)
    world.poll(310)
    world.put("a", 5_000, "2")
    world.put("a", 5_000, "1")  # an overwrite
    assert world.poll(5_300) == [("a", 2, 5_000)]


def test_an_object_that_appears_late_with_an_old_time_is_not_missed():
    """As the last part of an upload makes it; S3 dates it by its beginning."""
    world = World()
    world.put("a", 1_000)
    assert world.poll(1_300) == [("a", 1, 1_000)]
    world.put("b", 500)
    assert world.poll(1_400) == [("b", 1, 500)]


def test_folders_and_keys_of_other_paths_are_ignored():
    world = World()
    world.s3.objects |= {"d/p/a/": (at(1), 0), "d/x": at(1), "e/p/a/1": at(1), "d/p//1": at(1)}
    assert world.poll(1_000) == []
    assert {request["Prefix"] for request in world.s3.requests} == {"d/"}


def test_more_than_an_event_takes_come_in_the_next_also_at_one_moment():
    world = World()
    for number in range(2_500):
        world.put(f"{number:04}", 10)
    announced = [world.poll(400 + n) for n in range(4)]
    assert [len(one) for one in announced] == [1_000, 1_000, 500, 0]
    assert len({patient for one in announced for patient, _, _ in one}) == 2_500


def test_the_state_is_bounded_and_has_no_ids():
    world = World()
    for number in range(5_000):
        world.put(f"patient-{number}", 10 + number // 10)
    announced = [one for n in range(6) for one in world.poll(1_000 + n)]
    assert len({patient for patient, _, _ in announced}) == len(announced) == 5_000
    text = json.dumps(world.announced.to_dict())
    assert len(text) < 64_000
    assert "patient" not in text


@pytest.mark.parametrize("remembered", [5, 2_000])
@pytest.mark.parametrize("seed", range(60))
def test_in_any_history_each_delivery_is_announced_once(seed, remembered, monkeypatch):
    """And whole, where the state isn't too small; the order in which deliveries begin and settle is any."""
    monkeypatch.setattr(module, "MAX_DELIVERIES", 3)
    monkeypatch.setattr(module, "MAX_REMEMBERED", remembered)
    rng = random.Random(seed)
    puts: list[tuple[float, str, str]] = []
    deliveries: dict[tuple[str, float], int] = {}
    for patient in (f"p{n}" for n in range(12)):
        moment = float(rng.randint(0, 2_000))
        for number in range(rng.randint(0, 4)):
            times = [moment]
            for _ in range(rng.randint(0, 5)):
                times.append(times[-1] + rng.randint(0, 299))
            puts += [(time, patient, f"{number}-{n}") for n, time in enumerate(times)]
            deliveries[patient, times[-1]] = len(times)
            # The next begins after every poll that may announce this one.
            moment = times[-1] + 300 + rng.randint(3_000, 6_000)
    world, announced, clock = World(), [], 0.0
    puts.sort()
    while clock < 60_000:
        clock += rng.choice([1, 60, 120, 500])
        while puts and puts[0][0] <= clock:
            moment, patient, name = puts.pop(0)
            world.put(patient, moment, name)
        announced += world.poll(clock)
        if len(announced) == len(deliveries) and not puts:
            break
    assert sorted((patient, newest) for patient, _, newest in announced) == sorted(deliveries)
    if remembered == 2_000:
        assert {(patient, newest): count for patient, count, newest in announced} == deliveries


class SftpWorld:
    """A server and a feed; ``restart`` is a new process, with what was stored."""

    def __init__(self, off: int = 0, since: datetime | None = None) -> None:
        self.files = MemorySftp(off, START.timestamp())
        self.feed = FEED
        self.announced = Announced.since(since) if since else Announced((0, "~"))
        self.restart()

    def restart(self) -> None:
        self.source = SftpSource(lambda: self.files.now)

    def start(self) -> None:
        """Let what is there now count as announced."""
        self.announced = self.files.run(self.feed.start(self.source))

    def put(self, patient: str, name: str = "1", **written: float) -> None:
        self.files.write(f"d/p/{patient}/{name}", **written)

    def poll(self, after: float) -> list[tuple[str, int]]:
        self.files.pass_time(after)
        found, self.announced = self.files.run(self.feed.poke(self.announced, self.source))
        self.announced = Announced.from_dict(json.loads(json.dumps(self.announced.to_dict())))
        return [(one.values["healthexPatientId"], one.object_count) for one in found]


OFFS = pytest.mark.parametrize("off", [-5 * 3600, -60, 0, 60, 9 * 3600])


class TestOnSftp:
    """By a server's clock that nobody knows."""

    @OFFS
    @pytest.mark.parametrize("there", [[], ["a"], ["a", "b"]])
    def test_what_is_there_at_the_start_is_not_announced_and_what_comes_is_once(self, off, there):
        world = SftpWorld(off)
        for patient in there:
            world.put(patient, ago=60)
        world.start()
        assert world.poll(60) == []
        world.put("a", "new")
        assert world.poll(10) == []
        assert world.poll(299) == []
        assert world.poll(1) == [("a", 1)]
        assert world.poll(3_600) == world.poll(100_000) == []
        world.put("a", "next")
        assert world.poll(60) == []
        assert world.poll(300) == [("a", 1)]

    @pytest.mark.parametrize("dated", [10 * 365 * 86_400, 20 * 3_600])
    @pytest.mark.parametrize("is_there_at_the_start", [True, False])
    def test_a_file_dated_in_the_future_silences_nothing(self, dated, is_there_at_the_start):
        world = SftpWorld()
        if is_there_at_the_start:
            world.put("wrong", dated=world.files.now + dated)
        world.start()
        world.put("wrong", dated=world.files.now + dated)
        world.poll(60)
        world.put("a")
        announced = world.poll(60) + world.poll(300) + world.poll(300)
        assert ("a", 1) in announced
        for _ in range(3):
            world.put("a", f"{world.files.now}")
            assert world.poll(60) == []
            assert world.poll(300) == [("a", 1)]

    @pytest.mark.parametrize("is_there_at_the_start", [True, False])
    def test_a_file_dated_years_ahead_does_not_silence_its_patient(self, is_there_at_the_start):
        world = SftpWorld()
        if not is_there_at_the_start:
            world.start()
        world.put("a", "wrong", dated=world.files.now + 10 * 365 * 86_400)
        if is_there_at_the_start:
            world.start()
        assert world.poll(60) + world.poll(300) == []
        world.put("a")
        assert world.poll(60) + world.poll(300) == [("a", 1)]

    def test_a_file_dated_years_ahead_is_reported_once(self, caplog):
        world = SftpWorld()
        world.start()
        world.put("a", "wrong", dated=world.files.now + 10 * 365 * 86_400)
        world.poll(60)
        world.poll(60)
        (line,) = caplog.messages
        assert line.startswith("1 file is dated more than 26 hours ahead and ignored")
        assert "wrong" not in line

    def test_a_delivery_that_goes_on_has_not_settled(self):
        world = SftpWorld(off=-5 * 3_600)
        world.start()
        for number in range(5):
            world.put("a", str(number))
            assert world.poll(200) == []
        assert world.poll(299) == []
        assert world.poll(1) == [("a", 5)]

    def test_a_restart_neither_repeats_nor_misses(self):
        world = SftpWorld()
        world.start()
        world.put("a")
        assert world.poll(60) + world.poll(300) == [("a", 1)]
        world.put("b")
        world.restart()
        assert world.poll(60) + world.poll(300) == [("b", 1)]

    def test_half_written_files_are_not_counted(self):
        world = SftpWorld()
        world.start()
        world.put("a", "1.part")
        assert world.poll(60) + world.poll(300) == []

    def test_a_delivery_has_not_settled_while_a_half_written_file_grows(self):
        world = SftpWorld()
        world.start()
        world.put("a", "1")
        for _ in range(4):
            world.put("a", "2.filepart")
            assert world.poll(200) == []
        world.files.rename("d/p/a/2.filepart", "d/p/a/2")
        assert world.poll(100) == []
        assert world.poll(300) == [("a", 2)]
        assert world.poll(300) == []

    def test_a_half_written_file_that_stays_holds_nothing_up(self):
        world = SftpWorld()
        world.start()
        world.put("a", "1")
        world.put("a", "2.part")
        assert world.poll(60) + world.poll(300) == [("a", 1)]
        watermark = world.announced.watermark
        assert world.poll(100_000) == []
        assert world.announced.watermark > watermark
        assert world.announced.later == {}

    @pytest.mark.parametrize("settles_after", [1, 4])
    def test_a_delivery_with_an_older_time_than_many_others_is_not_lost(self, settles_after, monkeypatch):
        """As of files that were moved in: they keep their times."""
        monkeypatch.setattr(module, "MAX_REMEMBERED", 5)
        world = SftpWorld()
        world.start()
        for number in range(20):
            world.put(f"p{number:02}")
        world.poll(60)
        for number in range(settles_after):
            world.put("moved", str(number), ago=1_000)
            announced = world.poll(300)
            assert len(announced) == (0 if number else 20)
        assert world.poll(300) == [("moved", settles_after)]
        assert world.poll(300) == []

    def test_since_is_compared_with_the_servers_times(self):
        world = SftpWorld(since=START - timedelta(hours=1))
        world.put("a", ago=2 * 3_600)
        world.put("b", ago=1_800)
        assert world.poll(60) + world.poll(300) == [("b", 1)]

    def test_many_deliveries_are_all_announced_and_the_state_stays_bounded(self):
        world = SftpWorld()
        world.files.answer = self.answering(world.files, 3_000)
        announced = [one for _ in range(6) for one in world.poll(300)]
        assert len(announced) == len(set(announced)) == 3_000
        assert len(json.dumps(world.announced.to_dict())) < 64_000

    @staticmethod
    def answering(files: MemorySftp, count: int):
        """Answer for a tree of so many patients; it is too large to be searched for each request."""
        written = int(files.now) - 60
        names = [f"{number:05}" for number in range(count)]

        def answer(request):
            if isinstance(request, ListFolder):
                if request.path == "d/p/":
                    return [Entry(name, EntryType.FOLDER) for name in names]
                if request.path == "d/":
                    return [Entry("p", EntryType.FOLDER)]
                return [Entry("1", EntryType.FILE, 2, written)]
            return "here" if isinstance(request, Server) else Entry("", EntryType.FOLDER)

        return answer


def test_a_path_without_the_patient_is_refused():
    with pytest.raises(HealthExConfigurationError, match="doesn't name the patient"):
        Feed("d/{projectId}/", 300)


@pytest.mark.parametrize("path", ["{projectId}-{healthexPatientId}/", "d/{orgId}/{projectId}_{externalId}.json"])
def test_a_path_whose_variables_only_a_sign_of_ids_separates_is_refused(path):
    with pytest.raises(HealthExConfigurationError, match=r"between two variables.*Separate variables by '/'"):
        Feed(path, 300)


@pytest.mark.parametrize("path", ["{projectId}/x-{healthexPatientId}/", "d/{projectId}/-/{externalId}.json"])
def test_a_path_whose_variables_a_slash_separates_is_accepted(path):
    assert Feed(path, 300).path == path


@pytest.mark.parametrize("path", ["d/*/{healthexPatientId}/", "d/{healthexPatientId}/?.json"])
def test_a_glob_is_refused(path):
    with pytest.raises(HealthExConfigurationError, match="must not contain"):
        Feed(path, 300)


@pytest.mark.parametrize("stored", [None, "", [], {}, {"watermark": 7, "later": {}}, {"watermark": [1, "a"]}])
def test_a_state_that_cannot_be_read_is_none(stored):
    assert Announced.from_dict(stored) is None


def test_seconds_are_whole():
    assert seconds(datetime(1970, 1, 1, 0, 0, 7, 999_999, timezone.utc)) == 7
