"""Deciding arrival: from what a listing shows, what is expected and the storage's own clock, to a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from airflow_provider_healthex.delivery.template import Kind, Target


class StoredObject(NamedTuple):
    """One row of a listing. A tuple, because a listing may have a hundred thousand."""

    key: str
    last_modified: datetime  # UTC; whole seconds on S3, and the storage's clock
    size: int  # bytes
    etag: str = ""


@dataclass(frozen=True)
class Expectation:
    """
    What counts as the delivery that is waited for.

    :param targets: where it lands; every one of them must have its objects.
    :param since: the baseline (UTC): objects modified before it are an earlier delivery's.
    :param clock_skew: seconds by which the storage's clock may be behind the baseline's.
    :param min_objects: objects each target must have at least.
    :param quiet_period: seconds since the newest object, so that a delivery of several files has paused.
    :param marker: the name of a file that ends a delivery; required instead of the quiet period.
    """

    targets: tuple[Target, ...]
    since: datetime
    clock_skew: float = 2
    min_objects: int = 1
    quiet_period: float = 300
    marker: str | None = None

    @property
    def floor(self) -> datetime:
        """The oldest modification time that counts. S3's times are whole seconds, so the baseline's must be."""
        return self.since.replace(microsecond=0) - timedelta(seconds=self.clock_skew)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, for a trigger's arguments."""
        return {
            **asdict(self),
            "since": self.since.isoformat(),
            "targets": [{**asdict(target), "kind": target.kind.value} for target in self.targets],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Expectation:
        """Read the JSON form."""
        targets = tuple(Target(**{**target, "kind": Kind(target["kind"])}) for target in value["targets"])
        return cls(**{**value, "since": datetime.fromisoformat(value["since"]), "targets": targets})


@dataclass(frozen=True)
class Waiting:
    """
    Nothing, or not enough, has arrived.

    :param reason: what is there and what is missing, without an id.
    :param unmatched: the paths, by their positions, that nothing at all matches, neither fresh nor stale.
    """

    reason: str
    unmatched: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Arrived:
    """The delivery is there; ``objects`` are its objects by key, without markers and folders."""

    objects: tuple[StoredObject, ...]


def decide(rows: Iterable[StoredObject], expectation: Expectation, now: datetime) -> Arrived | Waiting:
    """
    Decide whether a delivery has arrived.

    :param rows: what a listing of the expectation's targets showed, in any order; strangers are ignored.
    :param expectation: what counts.
    :param now: the storage's own time, when it was listed.
    """
    tally = Tally(expectation)
    tally.add(rows)
    return tally.verdict(now)


@dataclass
class _Count:
    """What was seen of one target so far."""

    fresh: set[str] = field(default_factory=set)  # keys: where targets overlap, listings show an object twice
    stale: int = 0
    newest_stale: datetime | None = None
    marked: bool = False


@dataclass
class Tally:
    """The decision as a fold, so that a listing of many pages is never held whole: only fresh objects are."""

    expectation: Expectation
    _counts: list[_Count] = field(init=False)
    _fresh: dict[str, StoredObject] = field(init=False, default_factory=dict)
    _floor: datetime = field(init=False)

    def __post_init__(self) -> None:
        self._counts = [_Count() for _ in self.expectation.targets]
        self._floor = self.expectation.floor

    def is_fresh(self, modified: datetime) -> bool:
        """Whether an object of this time is newer than the request."""
        return modified >= self._floor

    def add(self, rows: Iterable[StoredObject]) -> None:
        """Take note of some rows."""
        marker = self.expectation.marker
        pairs = tuple(zip(self.expectation.targets, self._counts, strict=True))
        for row in rows:
            if row.size == 0 and row.key.endswith("/"):  # a console's folder, no delivery
                continue
            for target, count in pairs:
                if marker and target.holds_marker(row.key, marker):
                    count.marked = count.marked or self.is_fresh(row.last_modified)
                elif target.matches(row.key):
                    self._add_match(row, count)

    def _add_match(self, row: StoredObject, count: _Count) -> None:
        if self.is_fresh(row.last_modified):
            count.fresh.add(row.key)
            self._fresh[row.key] = row
        else:
            count.stale += 1
            if count.newest_stale is None or row.last_modified > count.newest_stale:
                count.newest_stale = row.last_modified

    def verdict(self, now: datetime) -> Arrived | Waiting:
        """Decide by what has been added."""
        for target, count in zip(self.expectation.targets, self._counts, strict=True):
            reason = self._missing(target, count)
            if reason:
                empty = (i for i, one in enumerate(self._counts) if not one.fresh and not one.stale)
                return Waiting(reason, tuple(empty))
        fresh = len(self._fresh)
        if self.expectation.marker is None:
            newest = max(row.last_modified for row in self._fresh.values())
            left = self.expectation.quiet_period - (now - newest).total_seconds()
            if left > 0:
                quiet = self.expectation.quiet_period
                return Waiting(f"{_objects(fresh, 'fresh ')}, settling: {left:.0f} s of {quiet:g} s left")
        return Arrived(tuple(self._fresh[key] for key in sorted(self._fresh)))

    def _missing(self, target: Target, count: _Count) -> str | None:
        where = f"{'at' if target.kind is Kind.KEY else 'under'} {target.template}"
        fresh, wanted = len(count.fresh), self.expectation.min_objects
        if fresh == 0 and count.newest_stale is None:
            return f"no objects {where}"
        if fresh == 0:
            return (
                f"{_objects(count.stale)} {where}, newest {_iso(count.newest_stale)} is older than "
                f"the request at {_iso(self.expectation.since)}"
            )
        if fresh < wanted:
            return f"{fresh} of at least {wanted} fresh objects {where}"
        if self.expectation.marker and not count.marked:
            return f"{_objects(fresh, 'fresh ')} {where}, no fresh {self.expectation.marker} yet"
        return None


def _objects(count: int, adjective: str = "") -> str:
    return f"{count:,} {adjective}object{'' if count == 1 else 's'}"


def _iso(moment: datetime | None) -> str:
    return moment.replace(microsecond=0).isoformat() if moment else "?"
