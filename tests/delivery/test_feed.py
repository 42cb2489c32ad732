"""Announcing every delivery once, in whatever order they settle, over any restart."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta, timezone

import pytest
from delivery.s3_lists import MemoryS3

from airflow_provider_healthex.delivery import feed as module
from airflow_provider_healthex.delivery.feed import Announced, Feed, seconds
from airflow_provider_healthex.exceptions import HealthExConfigurationError

START = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)
FEED = Feed("d/{projectId}/{healthexPatientId}/", 300)


def at(moment: float) -> datetime:
    return START + timedelta(seconds=moment)


class World:
    """A bucket, a clock and a feed whose memory goes through JSON at every look, as with a restart."""

    def __init__(self, feed: Feed = FEED, since: datetime = START) -> None:
        self.s3, self.feed, self.announced = MemoryS3({}, START), feed, Announced.since(since)

    def put(self, patient: str, moment: float, name: str = "1") -> None:
        self.s3.objects[f"d/p/{patient}/{name}"] = at(moment)

    def look(self, moment: float) -> list[tuple[str, int, float]]:
        self.s3.now = at(moment)
        found, self.announced = self.s3.drive(self.feed.look(self.announced))
        self.announced = Announced.from_dict(json.loads(json.dumps(self.announced.to_dict())))
        return [
            (one.values["healthexPatientId"], one.object_count, (one.last_modified - START).total_seconds())
            for one in found
        ]


def test_a_delivery_is_announced_when_it_has_paused_and_never_again():
    world = World()
    world.put("a", 10)
    assert world.look(309) == []
    assert world.look(310) == [("a", 1, 10)]
    assert world.look(311) == []
    assert world.look(90_000) == []


def test_what_was_there_before_the_start_is_not_announced():
    world = World()
    world.put("a", -1)
    world.put("b", 0)
    assert world.look(1_000) == [("b", 1, 0)]


def test_one_that_began_earlier_and_ended_later_is_announced_whole():
    world = World()
    world.put("a", 10)
    for number, moment in enumerate(range(5, 400, 100)):
        world.put("b", moment, str(number))
    assert world.look(310) == [("a", 1, 10)]
    world.put("b", 400, "last")
    assert world.look(699) == []
    assert world.look(700) == [("b", 5, 400)]


def test_a_patients_next_delivery_is_another():
    world = World()
    world.put("a", 10)
    world.look(310)
    world.put("a", 5_000, "2")
    world.put("a", 5_000, "1")  # an overwrite
    assert world.look(5_300) == [("a", 2, 5_000)]


def test_an_object_that_appears_late_with_an_old_time_is_not_missed():
    """As the last part of an upload makes it; S3 dates it by its beginning."""
    world = World()
    world.put("a", 1_000)
    assert world.look(1_300) == [("a", 1, 1_000)]
    world.put("b", 500)
    assert world.look(1_400) == [("b", 1, 500)]


def test_a_folder_and_strangers_are_none():
    world = World()
    world.s3.objects |= {"d/p/a/": (at(1), 0), "d/x": at(1), "e/p/a/1": at(1), "d/p//1": at(1)}
    assert world.look(1_000) == []
    assert {request["Prefix"] for request in world.s3.requests} == {"d/"}


def test_more_than_an_event_takes_come_in_the_next_also_at_one_moment():
    world = World()
    for number in range(2_500):
        world.put(f"{number:04}", 10)
    told = [world.look(400 + n) for n in range(4)]
    assert [len(one) for one in told] == [1_000, 1_000, 500, 0]
    assert len({patient for one in told for patient, _, _ in one}) == 2_500


def test_the_memory_is_bounded_and_holds_no_ids():
    world = World()
    for number in range(5_000):
        world.put(f"patient-{number}", 10 + number // 10)
    told = [one for n in range(6) for one in world.look(1_000 + n)]
    assert len({patient for patient, _, _ in told}) == len(told) == 5_000
    text = json.dumps(world.announced.to_dict())
    assert len(text) < 64_000
    assert "patient" not in text


@pytest.mark.parametrize("remembered", [5, 2_000])
@pytest.mark.parametrize("seed", range(60))
def test_in_any_history_each_delivery_is_announced_once(seed, remembered, monkeypatch):
    """And whole, where the memory isn't too small; the order in which deliveries begin and settle is any."""
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
            # The next begins after every look that may tell of this one.
            moment = times[-1] + 300 + rng.randint(3_000, 6_000)
    world, told, clock = World(), [], 0.0
    puts.sort()
    while clock < 60_000:
        clock += rng.choice([1, 60, 120, 500])
        while puts and puts[0][0] <= clock:
            moment, patient, name = puts.pop(0)
            world.put(patient, moment, name)
        told += world.look(clock)
        if len(told) == len(deliveries) and not puts:
            break
    assert sorted((patient, newest) for patient, _, newest in told) == sorted(deliveries)
    if remembered == 2_000:
        assert {(patient, newest): count for patient, count, newest in told} == deliveries


def test_a_path_without_the_patient_is_refused():
    with pytest.raises(HealthExConfigurationError, match="doesn't name the patient"):
        Feed("d/{projectId}/", 300)


@pytest.mark.parametrize("path", ["{projectId}-{healthexPatientId}/", "d/{orgId}/{projectId}_{externalId}.json"])
def test_a_path_whose_variables_only_an_id_s_sign_separates_is_refused(path):
    with pytest.raises(HealthExConfigurationError, match=r"between two variables.*Separate variables by '/'"):
        Feed(path, 300)


@pytest.mark.parametrize("path", ["{projectId}/x-{healthexPatientId}/", "d/{projectId}/-/{externalId}.json"])
def test_a_path_whose_variables_a_slash_separates_is_taken(path):
    assert Feed(path, 300).path == path


@pytest.mark.parametrize("path", ["d/*/{healthexPatientId}/", "d/{healthexPatientId}/?.json"])
def test_a_glob_is_refused(path):
    with pytest.raises(HealthExConfigurationError, match="must not contain"):
        Feed(path, 300)


@pytest.mark.parametrize("stored", [None, "", [], {}, {"watermark": 7, "later": {}}, {"watermark": [1, "a"]}])
def test_a_memory_that_cannot_be_read_is_none(stored):
    assert Announced.from_dict(stored) is None


def test_seconds_are_whole():
    assert seconds(datetime(1970, 1, 1, 0, 0, 7, 999_999, timezone.utc)) == 7
