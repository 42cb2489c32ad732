"""Helpers: what drives a plan, and storages in memory that answer its requests and keep them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.utils import format_datetime
from itertools import takewhile
from typing import Any

from airflow_provider_healthex.delivery import Arrival, ArrivalWait, Pause, StoredObject, Waiting
from airflow_provider_healthex.delivery.sftp_listing import SftpListing
from airflow_provider_healthex.delivery.sftp_requests import Entry, EntryType, ListFolder, Server, Stat

#: Rows of a full page of S3.
PAGE = 1_000


def run(plan: Generator[Sequence[Any], Sequence[Any], Any], answer: Callable[[Any], Any]) -> Any:
    """Answer each request of a plan's batches, and return what the plan returns."""
    try:
        batch = next(plan)
        while True:
            assert batch, "a batch without a request"
            batch = plan.send([answer(request) for request in batch])
    except StopIteration as end:
        return end.value


@dataclass
class Poked:
    """A poke's result, and the fresh objects that it saw, by the patient's position."""

    waiting: Waiting | None
    objects: dict[int, list[StoredObject]]
    arrived: Mapping[int, Arrival]

    @property
    def keys(self) -> list[str] | None:
        """The sorted keys of the only patient's delivery, or None where it has not arrived."""
        return None if self.waiting else sorted(each.key for each in self.objects[0])

    @property
    def reason(self) -> str:
        assert self.waiting is not None, "all have arrived"
        return self.waiting.reason


def poke(wait: ArrivalWait, run_plan: Callable[[Any], Any]) -> Poked:
    """Check once, with whatever runs plans."""
    objects: dict[int, list[StoredObject]] = {}
    waiting = run_plan(wait.poke(lambda index, rows: objects.setdefault(index, []).extend(rows)))
    return Poked(waiting, objects, dict(wait.arrived))


class RowsListing:
    """A listing of one patient, and its only poke: some rows as they come, by S3's clock."""

    confirmation = None
    needs_objects = False

    def __init__(self, rows: Iterable[StoredObject], now: datetime) -> None:
        self.rows, self.now = rows, now

    def start(self) -> RowsListing:
        return self

    def list(self, indices: Sequence[int], take: Callable[[int, Sequence[StoredObject]], None]) -> Any:
        for row in self.rows:
            take(0, [row])
        return
        yield

    def is_fresh(self, index: int, row: StoredObject, floor: datetime) -> bool:
        return row.last_modified >= floor

    def quiet_for(self, index: int, fresh: Any, newest: datetime | None) -> float:
        return (self.now - newest).total_seconds() if newest else 0.0

    def is_later_than(self, moment: datetime) -> bool:
        return True  # the rows are one moment, however they are handed over

    def obstacle(self, index: int) -> None:
        return None

    def remark(self) -> str:
        return ""

    def state(self, index: int) -> None:
        return None


class MemoryS3:
    """
    A bucket of keys with their times: key order, at most 1,000 rows a page.

    :param objects: times by key, or ``(time, size)``.
    :param now: what the ``Date`` header says.
    """

    def __init__(self, objects: dict[str, Any], now: datetime, page: int = PAGE) -> None:
        self.objects, self.now, self.page = objects, now, page
        self.requests: list[dict[str, Any]] = []

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        prefix = request["Prefix"]
        after = request.get("ContinuationToken") or request.get("StartAfter", "")
        size = min(self.page, request.get("MaxKeys", self.page))
        # By bytes, as S3 does: the tests don't take Python's order of strings for granted.
        keys, least = self._sorted(), prefix.encode("utf-8")
        start = bisect_left(keys, least, key=str.encode)
        start = max(start, bisect_right(keys, after.encode("utf-8"), key=str.encode)) if after else start
        found = list(takewhile(lambda key: key.startswith(prefix), keys[start : start + size + 1]))
        shown, more = found[:size], len(found) > size
        rows = [self._row(key) for key in shown]
        date = format_datetime(self.now.astimezone(timezone.utc), usegmt=True)
        return {
            "ResponseMetadata": {"HTTPHeaders": {"date": date}},
            "IsTruncated": more,
            "Contents": rows,
            **({"NextContinuationToken": shown[-1]} if more else {}),
        }

    def _sorted(self) -> list[str]:
        known = getattr(self, "_order", None)
        if known is None or len(known) != len(self.objects):
            self._order = sorted(self.objects, key=lambda key: key.encode("utf-8"))
        return self._order

    def _row(self, key: str) -> dict[str, Any]:
        value = self.objects[key]
        modified, size = value if isinstance(value, tuple) else (value, 1)
        return {"Key": key, "LastModified": modified, "Size": size, "ETag": '"e"'}

    def run(self, plan: Any) -> Any:
        return run(plan, self.answer)

    def poke(self, wait: ArrivalWait) -> Poked:
        return poke(wait, self.run)


@dataclass
class MemorySftp:
    """
    A tree of files and its two clocks: ``now`` is ours, and files are dated by ``now + off``.

    :param files: size and time by path.
    :param links: paths that are symbolic links.
    :param folders: that are there without a file.
    :param server: what `Server` is answered.
    :param meanwhile: happens between the two listings of a poke.
    """

    off: int = 0
    now: float = 0.0
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)
    folders: tuple[str, ...] = ("d",)
    server: str = "here"
    requests: list[object] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    meanwhile: Callable[[], None] | None = None

    def listing(self, *arguments: Any, **options: Any) -> SftpListing:
        return SftpListing(*arguments, **options, clock=lambda: self.now)

    def write(self, path: str, size: int = 2, *, ago: float = 0, dated: float | None = None) -> None:
        self.files[path] = (size, int(self.now + self.off - ago if dated is None else dated))

    def rename(self, path: str, to: str) -> None:
        self.files[to] = self.files.pop(path)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def entry(self, path: str) -> Entry | None:
        name = path.rpartition("/")[2]
        if path in self.links:
            return Entry(name, EntryType.OTHER)
        if path in self.files:
            return Entry(name, EntryType.FILE, *self.files[path])
        below = path in self.folders or any(each.startswith(f"{path}/") for each in (*self.files, *self.links))
        return Entry(name, EntryType.FOLDER, 4096, int(self.now)) if below else None

    def answer(self, request: object) -> object:
        self.requests.append(request)
        if isinstance(request, Pause):
            self.now += request.seconds
            if self.meanwhile:
                self.meanwhile()
            return None
        if isinstance(request, Server):
            return self.server
        if isinstance(request, Stat):
            return self.entry(request.path)
        assert isinstance(request, ListFolder)
        below = {each[len(request.path) :] for each in (*self.files, *self.links) if each.startswith(request.path)}
        names = {each.partition("/")[0] for each in below if each}
        return [self.entry(request.path + name) for name in sorted(names)] or None

    def run(self, plan: Any) -> Any:
        def counted() -> Any:
            answers = None
            while True:
                try:
                    batch = next(plan) if answers is None else plan.send(answers)
                except StopIteration as end:
                    return end.value
                self.batches.append(len(batch))
                answers = yield batch

        return run(counted(), self.answer)

    def poke(self, wait: ArrivalWait) -> Poked:
        return poke(wait, self.run)


def with_rule(expectation: Any, **changes: Any) -> Any:
    """Return an expectation with another rule."""
    return replace(expectation, rule=replace(expectation.rule, **changes))
