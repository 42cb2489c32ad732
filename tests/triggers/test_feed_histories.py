"""
The triggers of asset watchers in random histories, against the plainest account of what is to be announced.

The account knows each patient's newest announced object, for ever. Storage, clocks and kills are simulated: no server
ages by days in a second.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.stores import MemoryS3, MemorySftp

pytest.importorskip("airflow.providers.sftp")

from airflow_provider_healthex.delivery import Waiting
from airflow_provider_healthex.delivery import feed as delivery_feed
from airflow_provider_healthex.delivery.sources import S3Source, SftpSource
from airflow_provider_healthex.triggers import feed as trigger_feed
from airflow_provider_healthex.triggers import sftp as trigger_sftp
from airflow_provider_healthex.triggers.healthex import HealthExDeliveryTrigger
from airflow_provider_healthex.triggers.sftp import HealthExSftpDeliveryTrigger

PATH = "d/{projectId}/{healthexPatientId}/"
QUIET, HOUR = 300, 3_600
START = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc).timestamp()


class Killed(BaseException):
    """The triggerer was killed."""


class Ended(BaseException):
    """Nothing has happened for long enough."""


class History:
    """
    What happens below a path, and what is to be announced of it.

    :param has_store: whether Airflow keeps what has been announced.
    :param has_since: whether the trigger is given its start.
    """

    def __init__(self, seed: int, *, has_store: bool, has_since: bool) -> None:
        self.rng = random.Random(seed)
        self.now, self.end = START, START + self.rng.choice([2, 10, 40]) * HOUR
        self.since = datetime.fromtimestamp(START - HOUR, timezone.utc) if has_since else None
        self.patients = [f"p{number}" for number in range(self.rng.choice([1, 3, 12]))]
        self.seconds_between_actions = self.rng.choice([20, 200, 2_000])
        self.next_action = START
        self.has_store, self.stored, self.stored_newest = has_store, {}, {}
        self.newest: dict[str, float] = {}  # announced object, by patient
        self.polled_at = 0.0
        self.announcements = 0

    def act(self) -> None:
        """Let one thing happen."""
        raise NotImplementedError

    def objects(self) -> dict[str, float]:
        """Return the time of each object that counts."""
        raise NotImplementedError

    def answer(self, request: Any) -> Any:
        """Answer as the storage."""
        raise NotImplementedError

    def has_settled(self, patient: str, due: dict[str, float]) -> bool:
        raise NotImplementedError

    def trigger(self) -> Any:
        raise NotImplementedError

    def begin_without_since(self) -> None:
        """Let the account begin where the trigger does."""
        raise NotImplementedError

    def due(self, patient: str) -> dict[str, float]:
        """Return the objects that are to be announced."""
        mine, newest = f"d/p/{patient}/", self.newest.get(patient, 0)
        return {key: dated for key, dated in self.objects().items() if key.startswith(mine) and dated > newest}

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.next_action <= min(until, self.end):
            self.now = self.next_action
            self.act()
            self.next_action += self.rng.expovariate(1 / self.seconds_between_actions)
        self.now = until

    def happens(self, share: float) -> bool:
        return self.now < self.end and self.rng.random() < share

    async def sleep(self, seconds: float) -> None:
        if self.happens(0.03):
            self.pass_time(seconds / 2)
            raise Killed
        self.pass_time(seconds)
        if self.now > self.end + 10 * QUIET:
            raise Ended

    async def run(self, plan: Any) -> Any:
        """Be the storage, which is away now and then."""
        if self.happens(0.05):
            return Waiting("throttled")
        if self.happens(0.02):
            raise Killed
        self.polled_at, answers = self.now, None
        try:
            while True:
                batch = plan.send(answers)
                self.now += self.rng.random()
                answers = [self.answer(request) for request in batch]
        except StopIteration as end:
            if isinstance(end.value, delivery_feed.Announced):
                self.begin_without_since()
            return end.value

    async def __aenter__(self) -> History:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    async def aget(self, key: str) -> Any:
        if self.happens(0.1):
            raise ConnectionError("away")
        return json.loads(self.stored[key]) if key in self.stored else None

    async def aset(self, key: str, value: Any) -> None:
        if self.happens(0.1):
            raise ConnectionError("away")
        self.stored[key], self.stored_newest = json.dumps(value), dict(self.newest)

    def announce(self, deliveries: list[dict[str, Any]]) -> None:
        """Compare an event with the account."""
        assert 0 < len(deliveries) <= delivery_feed.MAX_DELIVERIES
        for delivery in deliveries:
            patient = delivery["patient_id"]
            due = self.due(patient)
            assert due, "announced twice without a change"
            assert self.has_settled(patient, due), "announced before it had settled"
            newest = max(due.values())
            moment = datetime.fromtimestamp(newest, timezone.utc).isoformat()
            assert (delivery["object_count"], delivery["last_modified"]) == (len(due), moment)
            self.newest[patient] = newest
            self.announcements += 1

    def restart(self) -> None:
        """Let the account be what a new process knows."""
        if self.stored:
            self.newest = dict(self.stored_newest)
        elif self.since:
            self.newest = dict.fromkeys(self.patients, self.since.timestamp() - 1)
        else:
            self.begin_without_since()

    def play(self) -> None:
        """Let one trigger after the other watch, until all that is due must have been announced."""
        while True:
            self.restart()
            watching = self.trigger()
            watching._open = lambda: self
            watching.asset_state_store = self if self.has_store else None
            try:
                asyncio.run(self.watch(watching))
            except Killed:
                self.pass_time(self.rng.choice([0, 60, 2_000]))
            except Ended:
                break
        assert not any(map(self.due, self.patients)), "a delivery that has settled was not announced"

    async def watch(self, watching: Any) -> None:
        async for event in watching.run():
            self.announce(json.loads(json.dumps(event.payload))["deliveries"])
            if self.happens(0.1):
                raise Killed


class S3History(History):
    """In a bucket, uploads of several parts appear when they end, dated by their start."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.s3 = MemoryS3({}, self.clock(), page=7)
        self.uploads: list[tuple[str, float]] = []

    def clock(self) -> datetime:
        return datetime.fromtimestamp(self.now, timezone.utc)

    def act(self) -> None:
        key, what = f"d/p/{self.rng.choice(self.patients)}/{self.rng.randint(0, 9)}", self.rng.random()
        if self.uploads and what < 0.2:
            name, began = self.uploads.pop()
            if began > self.now - HOUR:
                self.s3.objects[name] = datetime.fromtimestamp(int(began), timezone.utc)
        elif what < 0.2:
            self.uploads.append((key, self.now))
        elif what < 0.3:
            self.s3.objects.pop(key, None)
        else:
            self.s3.objects[key] = self.clock().replace(microsecond=0)
        self.s3._order = sorted(self.s3.objects)

    def objects(self) -> dict[str, float]:
        return {key: modified.timestamp() for key, modified in self.s3.objects.items()}

    def answer(self, request: Any) -> Any:
        self.s3.now = self.clock()
        answer = self.s3.answer(request)
        return answer if self.rng.random() < 0.5 else {**answer, "ResponseMetadata": {}}

    def has_settled(self, patient: str, due: dict[str, float]) -> bool:
        return max(due.values()) <= self.now - QUIET

    def begin_without_since(self) -> None:
        self.newest = dict.fromkeys(self.patients, int(self.now) - 1)

    def trigger(self) -> Any:
        watching = HealthExDeliveryTrigger("bucket", PATH, QUIET, self.since, 120)
        watching.source_class = partial(S3Source, self.clock)
        return watching


class SftpHistory(History):
    """On a server with a clock of its own, files grow, are renamed, and are moved in with an older time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.files = MemorySftp(self.rng.choice([0, 0, 60, -60, 9 * HOUR, 25 * HOUR, -26 * HOUR]))
        self.changed: dict[str, float] = {}  # by path

    def act(self) -> None:
        path = f"d/p/{self.rng.choice(self.patients)}/{self.rng.randint(0, 9)}"
        half, what, written, size = f"{path}.part", self.rng.random(), path, self.rng.randint(0, 1_000)
        self.files.now = self.now
        if what < 0.3:
            self.files.write(written := half, size)
        elif what < 0.5 and half in self.files.files and self.now - self.changed[half] < 3_000:
            self.files.rename(half, path)
        elif what < 0.6:
            self.files.write(path, size, ago=self.rng.randint(0, 3_000))
        elif what < 0.65:
            self.files.write(path, size, dated=self.now + 10**7)
        elif what < 0.7:
            self.files.files.pop(path, None)
        else:
            self.files.write(path, size)
        self.changed[written] = self.now

    def objects(self) -> dict[str, float]:
        latest = self.polled_at + 26 * HOUR
        return {
            path: dated
            for path, (_, dated) in self.files.files.items()
            if dated <= latest and not path.endswith(".part")
        }

    def answer(self, request: Any) -> Any:
        self.files.now = self.now
        return self.files.answer(request)

    def has_settled(self, patient: str, due: dict[str, float]) -> bool:
        half = [path for path in self.files.files if path.startswith(f"d/p/{patient}/") and path.endswith(".part")]
        return max(self.changed[path] for path in [*due, *half]) <= self.polled_at - QUIET

    def begin_without_since(self) -> None:
        self.newest.clear()
        self.newest = {patient: max(self.due(patient).values(), default=0) for patient in self.patients}

    def trigger(self) -> Any:
        watching = HealthExSftpDeliveryTrigger(PATH, QUIET, self.since, 120)
        watching.source_class = partial(SftpSource, lambda: self.now)
        return watching


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[History], History]:
    for module in (delivery_feed, trigger_feed):
        monkeypatch.setattr(module, "MAX_DELIVERIES", 3)

    def play(history: History) -> History:
        for module in (trigger_feed, trigger_sftp):
            monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=history.sleep))
        monkeypatch.setattr(trigger_feed, "utc_now", lambda: datetime.fromtimestamp(history.now, timezone.utc))
        history.play()
        return history

    return play


@pytest.mark.parametrize("has_since", [True, False], ids=["since", "no since"])
@pytest.mark.parametrize("has_store", [True, False], ids=["store", "no store"])
@pytest.mark.parametrize("kind", [S3History, SftpHistory])
def test_each_delivery_is_announced_once_it_has_settled_and_again_only_after_a_kill(play, kind, has_store, has_since):
    announced = sum(play(kind(seed, has_store=has_store, has_since=has_since)).announcements for seed in range(8))
    assert announced > 100
