"""
Telling fresh from stale on a server whose clock nobody knows.

SFTP doesn't report the server's time, and a file's time may be hours off, so neither "modified since the request" nor
"settled for so long" can be read from it alone. Writing a file to measure the clock would need rights that a reader
doesn't have. So the first poke of a wait is a second reference:

* A file is fresh if its time lies between the request and the first poke, or if it is newer than every file that was
  there at the first poke: that compares the server's clock with itself.
* A file that is dated after our first poke can be from either side of the request. Only a change makes it fresh.
* A patient whose files something hid from the first poke has a first poke of their own, the first that shows them.
* Settled means unchanged between our pokes for so long, by our clock. Only what was there at the first poke is judged
  by its time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow_provider_healthex.delivery.rule import StoredObject

#: Seconds that a server's clock can be behind: a day of time zones. A file older than the request by more is stale.
FARTHEST_BEHIND = 26 * 60 * 60

#: So many files dated after the first poke are remembered one by one, at 20 bytes each in a trigger's arguments.
MAX_AHEAD = 100


@dataclass
class SftpClock:
    """
    The results of a wait's earlier pokes, small enough for a trigger's arguments.

    :param clock_skew: seconds by which the server's clock may be ahead of ours.
    :param server: a digest of server, account and folder; another one starts the wait's observations anew.
    :param first_poke: epoch seconds by our clock; None before.
    :param newest: the newest time of a file at the first poke by the server's clock; None if there was none.
    :param ahead: digests of the sizes and times of files that were dated after the first poke.
    :param late: patients whose files the first poke could not list, by position: their own first poke and the newest
        time then; (None, None) until then.
    :param changes: for each patient with fresh files (by position): a digest of these, when the poke ended that showed
        it first, and whether that was the patient's first poke.
    """

    clock_skew: float = 60.0
    server: str | None = None
    first_poke: float | None = None
    newest: int | None = None
    ahead: list[str] = field(default_factory=list)
    late: dict[int, tuple[float | None, int | None]] = field(default_factory=dict)
    changes: dict[int, tuple[str, float, bool]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, for a trigger's arguments and the task's state store."""
        return {
            "server": self.server,
            "first_poke": self.first_poke,
            "newest": self.newest,
            "ahead": self.ahead,
            "late": [[index, *own] for index, own in self.late.items()],
            "changes": [[index, *change] for index, change in self.changes.items()],
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Continue with what another process of this wait saw."""
        self.server, self.first_poke, self.newest = kept["server"], kept["first_poke"], kept["newest"]
        self.ahead = list(kept["ahead"])
        self.late = {index: (first_poke, newest) for index, first_poke, newest in kept["late"]}
        self.changes = {index: (digest_, since, was_first) for index, digest_, since, was_first in kept["changes"]}

    def expect(self, server: str) -> None:
        """Start anew where it is another server: its clock and files have nothing to do with the last one's."""
        if server != self.server:
            self.restore(SftpClock(server=server).to_dict())

    def first_poke_of(self, index: int) -> tuple[float | None, int | None]:
        """Return when a patient's first poke was, and the newest time then."""
        return self.late.get(index, (self.first_poke, self.newest))


class SftpClockPoke:
    """One listing, compared with those of earlier pokes; ``now`` is epoch seconds by our clock."""

    def __init__(self, clock: SftpClock, now: float) -> None:
        self._clock = clock
        self._now = now
        self._times: list[int] = []
        self._ahead: dict[str, int] = {}  # digest: time
        self._states: dict[int, str] = {}

    @property
    def ahead_count(self) -> int:
        """How many files are dated after the first poke, so that only a change makes them fresh."""
        return len(self._ahead)

    def is_usable(self, index: int, file: StoredObject) -> bool:
        """Return whether a file's time can be compared, and remember the time."""
        seconds, (first_poke, _) = _seconds(file), self._clock.first_poke_of(index)
        if seconds > self._latest(first_poke) and (first_poke is None or _content(file) in self._clock.ahead):
            self._ahead[_content(file)] = seconds
            return False
        self._times.append(seconds)
        return True

    def is_fresh(self, index: int, file: StoredObject, floor: datetime) -> bool:
        """Return whether a file was written since the request, as far as that can be known."""
        seconds, (first_poke, newest) = _seconds(file), self._clock.first_poke_of(index)
        is_newer = first_poke is not None and (newest is None or seconds > newest)
        if is_newer and file.last_modified >= floor - timedelta(seconds=FARTHEST_BEHIND):
            return True
        return seconds <= self._latest(first_poke) and file.last_modified >= floor

    def _latest(self, first_poke: float | None) -> float:
        return (self._now if first_poke is None else first_poke) + self._clock.clock_skew

    def finish(self, seen: Collection[int], hidden: Collection[int]) -> None:
        """Remember what patients' first poke showed, where this was it; later pokes change nothing of it."""
        clock = self._clock
        new = [index for index in seen if clock.first_poke_of(index)[0] is None]
        if not new:
            return
        ahead, times = sorted({*clock.ahead, *self._ahead}), list(self._times)
        if len(ahead) <= MAX_AHEAD:
            clock.ahead = ahead
        else:
            times += self._ahead.values()
        newest = max(times, default=None)
        if clock.first_poke is None:
            clock.first_poke, clock.newest = self._now, newest
            clock.late = dict.fromkeys(hidden, (None, None))
        else:
            clock.late.update(dict.fromkeys(new, (self._now, newest)))

    def quiet_for(self, index: int, files: Iterable[StoredObject], ended: float) -> float:
        """
        Return for how many seconds a patient's files have not changed, and remember a change.

        :param index: the patient's position.
        :param files: the fresh files, and those still being written.
        :param ended: when this listing ended: any of them may have changed until then.
        """
        known, changes = list(files), self._clock.changes
        if not known:
            changes.pop(index, None)
            return 0.0
        state = self._states[index] = _state(known)
        if changes.get(index, ("",))[0] != state:
            changes[index] = (state, ended, self._clock.first_poke_of(index)[0] in (None, self._now))
        _, since, was_first = changes[index]
        quiet = max(0.0, self._now - since)
        return max(quiet, self._now - max(map(_seconds, known)) - self._clock.clock_skew) if was_first else quiet

    def state(self, index: int) -> str | None:
        """Return a digest of a patient's files, after `quiet_for`."""
        return self._states.get(index)


def digest(value: object) -> str:
    """Return a short text that stands for a value which isn't to be shown or stored."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _state(files: Iterable[StoredObject]) -> str:
    return digest(sorted((file.key, file.size, _seconds(file)) for file in files))


def _content(file: StoredObject) -> str:
    """Return a digest that a move doesn't change: a file that is only moved wasn't written."""
    return digest((file.size, _seconds(file)))


def _seconds(file: StoredObject) -> int:
    return int(file.last_modified.timestamp())


def moment(seconds: float) -> datetime:
    """Return a server's time in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)
