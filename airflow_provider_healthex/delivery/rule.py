"""
When a delivery has arrived: enough fresh data objects, and no more of them for a while. The only place that says so.

A patient, a cohort, the feed, S3 and SFTP all decide by this rule. They differ in how objects are listed, and in whose
clock dates them: a listing answers whether an object is fresh, and for how long nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from airflow_provider_healthex.delivery.template import Target
from airflow_provider_healthex.moments import whole_seconds


class StoredObject(NamedTuple):
    """
    One object of a listing. A tuple, because a listing may have a hundred thousand.

    :param key: the whole key or path.
    :param last_modified: UTC, by the storage's clock.
    :param size: bytes.
    :param etag: S3's entity tag, empty on SFTP.
    """

    key: str
    last_modified: datetime
    size: int
    etag: str = ""

    @property
    def is_data(self) -> bool:
        """Whether it was delivered, rather than made by a console to show a folder."""
        return self.size > 0 or not self.key.endswith("/")


@dataclass(frozen=True)
class ArrivalRule:
    """
    When a delivery has arrived.

    :param min_objects: fresh data objects that each awaited path has at least.
    :param quiet_period: seconds since the newest of them.
    :param marker: name of the file that ends a delivery, or its ending where it starts with a dot; a fresh one replaces
        the quiet period, and isn't data. HealthEx documents none.
    :param clock_skew: seconds by which the storage's clock may be behind HealthEx's.
    """

    min_objects: int = 1
    quiet_period: float = 300.0
    marker: str | None = None
    clock_skew: float = 2.0

    def floor(self, requested_at: datetime) -> datetime:
        """Return the oldest modification time that is fresh. S3's times are whole seconds, so the request's must be."""
        return whole_seconds(requested_at) - timedelta(seconds=self.clock_skew)

    def is_enough(self, seen: Seen) -> bool:
        """Return whether what was seen of a path can be a whole delivery."""
        return seen.fresh >= self.min_objects and (self.marker is None or seen.marked)

    def is_settled(self, quiet_for: float) -> bool:
        """Return whether a delivery whose last change is so many seconds ago has ended."""
        return self.marker is not None or quiet_for >= self.quiet_period


@dataclass(slots=True)
class Seen:
    """The objects of one path in one poke, as numbers only: memory grows with the patients, not with the objects."""

    fresh: int = 0
    stale: int = 0
    newest_stale: datetime | None = None
    marker_at: datetime | None = None  # when the first fresh marker was written
    parts: int = 0  # of the listing, that had objects of the path
    marked: bool = False  # a fresh marker is there, and all that was written before it has been listed

    def add(
        self,
        rows: Iterable[StoredObject],
        target: Target,
        marker: str | None,
        is_fresh: Callable[[StoredObject], bool],
    ) -> list[StoredObject]:
        """Count the rows that belong to the path, and return the fresh data objects among them."""
        fresh = []
        before = self.stale, self.marker_at
        for row in rows:
            if not row.is_data:
                continue
            if marker and target.holds_marker(row.key, marker):
                if is_fresh(row):
                    self.marker_at = min(self.marker_at or row.last_modified, row.last_modified)
            elif target.matches(row.key):
                if is_fresh(row):
                    fresh.append(row)
                    continue
                self.stale += 1
                if self.newest_stale is None or row.last_modified > self.newest_stale:
                    self.newest_stale = row.last_modified
        self.fresh += len(fresh)
        self.parts += bool(fresh) or before != (self.stale, self.marker_at)
        return fresh

    def accept_marker(self, listed_since: Callable[[datetime], bool]) -> None:
        """
        Accept the marker, if all that was written before it has been listed.

        One part of a listing shows one moment. Over several, a key may be written behind the part that was just listed,
        and then the marker ahead of it.

        :param listed_since: returns whether the whole listing is later than a moment.
        """
        self.marked = self.marker_at is not None and (self.parts == 1 or listed_since(self.marker_at))
