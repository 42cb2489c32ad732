"""
How a feed lists everything under a path, poll after poll.

Neither S3 nor SFTP can list what has changed since a moment, and any key may be written again: nothing under the path's
literal start can be skipped. So everything is listed, and several requests are in flight.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from airflow_provider_healthex.delivery.feed import PendingDelivery, TakeRows
from airflow_provider_healthex.delivery.plan import Plan, Steps, together
from airflow_provider_healthex.delivery.rule import StoredObject
from airflow_provider_healthex.delivery.s3_groups import WIDTH
from airflow_provider_healthex.delivery.s3_listing import Pages, Request, server_time
from airflow_provider_healthex.delivery.sftp_clock import FARTHEST_BEHIND
from airflow_provider_healthex.delivery.sftp_listing import list_files, whole_name
from airflow_provider_healthex.delivery.sftp_requests import Obstacle, Server
from airflow_provider_healthex.delivery.template import Target
from airflow_provider_healthex.moments import utc_now

log = logging.getLogger(__name__)

#: Ranges of keys that a poll lists at most, and the pages that a range has at least: its last page may be a short one,
#: so that a poll makes a quarter more requests at the most.
MAX_RANGES, MIN_PAGES = 4 * WIDTH, 4


@dataclass
class _Range:
    """
    The keys behind one and up to another, and what listing them has shown.

    :param after: the key they follow; empty for the first range.
    :param until: the last key that may be one of them; None for the last range.
    """

    after: str
    until: str | None
    now: datetime | None = None
    page_ends: list[str] = field(default_factory=list)

    def scan(self, prefix: str, take: Callable[[Sequence[StoredObject]], None]) -> Steps[None]:
        """List the range's keys under a prefix; raises what `s3_listing.scan` does."""
        pages = Pages(self.after)
        request: Request | None = {"Prefix": prefix, **({"StartAfter": self.after} if self.after else {})}
        while request is not None:
            page = yield request
            self.now = self.now or server_time(page)
            rows = pages.rows(request, page)
            is_last = self.until is not None and pages.last >= self.until
            if is_last:
                rows = rows[: bisect_right(rows, self.until, key=lambda row: row.key)]
            if rows:
                self.page_ends.append(rows[-1].key)
                take(rows)
            request = None if is_last else pages.next_request(request, page)


class S3Source:
    """
    How a feed lists a bucket: all of it at each poll, by S3's clock.

    The first poll lists page after page. The following ones list ranges of keys side by side, which begin where pages
    of the poll before ended. Whatever is written meanwhile, each key lies in one range; only their lengths differ then.
    """

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._boundaries: list[str] = []
        self.now = 0

    def list(self, target: Target, take: TakeRows) -> Plan[None]:
        """Plan one listing."""
        began = self._clock()  # for a storage that sends no Date: before the first request, or a delivery settles early
        ranges = [_Range(after or "", until) for after, until in pairwise(["", *self._boundaries, None])]
        yield from together((each.scan(target.prefix, lambda rows: take(rows, ())) for each in ranges), WIDTH)
        ends = [end for each in ranges for end in each.page_ends]
        count = min(MAX_RANGES, len(ends) // MIN_PAGES)
        self._boundaries = [ends[number * len(ends) // count - 1] for number in range(1, count)]
        now = min((each.now for each in ranges if each.now), default=None)
        self.now = int((now or began).timestamp())

    def quiet_for(self, deliveries: Mapping[str, PendingDelivery]) -> Mapping[str, float]:
        """Return the age of each delivery's newest object, in seconds."""
        return {digest: self.now - one.newest for digest, one in deliveries.items()}


class SftpSource:
    """
    How a feed lists a server: all of it at each poll, folders side by side.

    The server's clock is unknown: a delivery has settled when nothing of it has changed between polls for so long, by
    ours.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._changes: dict[str, tuple[int, float]] = {}
        self._is_first = True
        self._has_warned = False
        self._polled_at = 0.0
        self.now = 0

    def list(self, target: Target, take: TakeRows) -> Plan[None]:
        """Plan one listing."""

        def sort_out(_: int, files: Sequence[StoredObject]) -> None:
            usable = [file for file in files if file.last_modified.timestamp() <= latest]
            self._warn_of(len(files) - len(usable))
            named = [(file, whole_name(file.key)) for file in usable]
            take(
                [file for file, name in named if name == file.key],
                [file._replace(key=name) for file, name in named if name != file.key],
            )

        yield [Server()]
        self._polled_at = self._clock()
        latest = self._polled_at + FARTHEST_BEHIND  # of a server's clock that can be right somewhere
        obstacles = yield from list_files([(0, [target])], sort_out, is_first_poke=self._is_first, by_folder=True)
        if obstacles:
            raise Obstacle(obstacles[0])
        self._is_first = False
        self.now = int(self._polled_at) - FARTHEST_BEHIND

    def _warn_of(self, ahead: int) -> None:
        if ahead and not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s dated more than 26 hours ahead and ignored: until then, each would hide its patient's deliveries. "
                "Correct the times of such files.",
                f"{ahead:,} file{' is' if ahead == 1 else 's are'}",
            )

    def quiet_for(self, deliveries: Mapping[str, PendingDelivery]) -> Mapping[str, float]:
        """
        Return for how many seconds each delivery has not changed: from the end of the poll that showed it first to the
        beginning of this one. Two polls must agree, as a file may just be growing.
        """
        new, before = (0, self._clock()), self._changes
        since = {
            digest: before[digest][1] if before.get(digest, new)[0] == one.state else new[1]
            for digest, one in deliveries.items()
        }
        self._changes = {digest: (one.state, since[digest]) for digest, one in deliveries.items()}
        return {
            digest: self._polled_at - since[digest] if digest in before and before[digest] == changed else -1.0
            for digest, changed in self._changes.items()
        }
