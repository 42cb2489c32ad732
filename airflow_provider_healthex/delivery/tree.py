"""
One look at a folder tree on a server whose clock is unknown, without doing it: what to ask for, and what it decides.

A generator yields what it wants to know, and is sent the answer; whoever holds a connection drives it. The decision is
:class:`~.arrival.Tally`'s, as for a bucket. Three things are otherwise than in a bucket:

* **The clock.** Nothing in SFTP tells the server's time, and a file's time may be hours off, so neither "modified
  since the request" nor "quiet for so long" can be read from it alone. Writing a file to measure the clock would need
  rights that a reader hasn't. So the first listing is the second baseline: a file is fresh if its time lies between
  the request and our first look, or if it is newer than all that was there at our first look, by the server's own
  clock, which is hours off at the most. A file that is dated after our first look can be of either side of the
  request, and only its change makes it fresh. And quiet is what has not changed under our eyes for so long, by our
  clock; only what was already as it is at the first look is judged by its time.
* **Files grow under their name**, or under another and are renamed. Half-written ones are told by that name, or by
  their changing between two listings: an arrival is believed when a second listing, a little later, shows the same.
* **Links.** A folder or file that is a symbolic link is not followed: it may lead out of the path, to another
  patient's files. The path's part before its first variable is its author's, and may be one.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any, NamedTuple

from airflow_provider_healthex.delivery.arrival import Arrived, Expectation, StoredObject, Tally, Waiting
from airflow_provider_healthex.delivery.template import Kind, Target, literal_prefix

#: How uploading programs name what isn't whole yet.
PARTIAL = (".part", ".filepart", ".tmp")

#: Seconds between the two listings that must agree, where polls are not closer.
CONFIRMATION = 5.0

#: Seconds that a server's clock can be behind: a day of time zones. What is older than the request by more is old.
FARTHEST_BEHIND = 26 * 60 * 60

#: So many files of a first look are remembered one by one, at 20 bytes each in a trigger's arguments.
MAX_AHEAD = 100


class Sort(Enum):
    """What an entry of a folder is."""

    FILE = "file"
    FOLDER = "folder"
    OTHER = "other"  # a symbolic link, a device
    UNTOLD = "untold"  # the server doesn't say


class Entry(NamedTuple):
    """One entry of a folder."""

    name: str
    sort: Sort
    size: int = 0  # bytes
    modified: int | None = None  # seconds since the epoch, by the server's clock; None where it doesn't say


@dataclass(frozen=True)
class Stat:
    """Wants the :class:`Entry` at a path, None where there is none; ``follow`` a symbolic link to what it leads to."""

    path: str
    follow: bool = False


@dataclass(frozen=True)
class Folder:
    """Wants the entries of a folder, None where there is none (any more); the empty path is the account's own."""

    path: str  # ends in "/", or is empty


@dataclass(frozen=True)
class Whereabouts:
    """Wants a short text that is another one for another server, account or folder that paths begin at."""


@dataclass(frozen=True)
class Pause:
    """Wants some seconds to pass."""

    seconds: float


Request = Stat | Folder | Whereabouts | Pause
TreeLook = Generator[Request, Any, Arrived | Waiting]


class NoSuchRoot(Exception):
    """The path's first folder isn't there: the account sees another root than the path's author, or there's a typo."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.folder = folder


@dataclass
class Watch:
    """
    What earlier looks of this wait showed, few enough for a trigger's arguments.

    :param first_look: when that was, by our clock (epoch seconds); None before.
    :param newest: the newest time of a file then, by the server's, without those ahead; None where there was none.
    :param ahead: digests of the sizes and times of the files that were dated after it.
    :param where: which server that was.
    :param state: a digest of the fresh files' names, sizes and times at the last look.
    :param changed_at: when that state was first seen, by our clock.
    """

    first_look: float | None = None
    newest: int | None = None
    ahead: list[str] = field(default_factory=list)
    where: str | None = None
    state: str | None = None
    changed_at: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, for a trigger's arguments."""
        return asdict(self)

    def recall(self, value: Mapping[str, Any]) -> None:
        """Go on with what another process has seen, in its JSON form."""
        for name, seen in value.items():
            setattr(self, name, seen)


def look_at_tree(
    expectation: Expectation, watch: Watch, *, pause: float = CONFIRMATION, clock: Callable[[], float] = time.time
) -> TreeLook:
    """
    Look once at every target of an expectation, and once more where it seems to have arrived.

    :param expectation: what counts.
    :param watch: of this wait; it is brought up to date.
    :param pause: seconds between the two listings.
    :param clock: ours, in epoch seconds.
    :raises NoSuchRoot: at the first look of a wait.
    """
    where = yield Whereabouts()
    if where != watch.where:  # what another server has shown says nothing of this one's clock and files
        watch.recall(Watch(where=where).to_dict())
    first = yield from _look_once(expectation, watch, clock)
    if isinstance(first, Waiting):
        return first
    yield Pause(pause)
    second = yield from _look_once(expectation, watch, clock)
    if isinstance(second, Arrived) and second.objects != first.objects:
        return Waiting(f"{len(second.objects):,} fresh files, still changing between two listings")
    return second


def _look_once(expectation: Expectation, watch: Watch, clock: Callable[[], float]) -> TreeLook:
    now = clock()
    tally = _TreeTally(expectation, watch, now)
    for target in expectation.targets:
        files: list[StoredObject] = []
        problem = yield from _walk(target, watch, files)
        if problem:
            return Waiting(problem)
        tally.see(target, files)
    return tally.decide()


class _TreeTally(Tally):
    """The decision, where the files' times are of a clock that isn't ours; ``now`` is of ours, in epoch seconds."""

    def __init__(self, expectation: Expectation, watch: Watch, now: float) -> None:
        super().__init__(expectation)
        self._watch = watch
        self._now = now
        self._first_look = now if watch.first_look is None else watch.first_look
        self._latest = self._first_look + expectation.clock_skew
        self._oldest = self._floor - timedelta(seconds=FARTHEST_BEHIND)
        self._times: list[int] = []
        self._ahead: dict[str, int] = {}  # digest: time
        self._partial: list[StoredObject] = []

    def see(self, target: Target, files: Iterable[StoredObject]) -> None:
        """Take note of a target's files, and of strangers among them of nothing."""
        whole, marker = [], self.expectation.marker
        for file in files:
            name = _whole_name(file.key)
            if not target.matches(name) and not (marker and target.holds_marker(name, marker)):
                continue
            if name != file.key:
                self._partial.append(file)
            elif self._is_ahead(file):
                self._ahead[_content(file)] = _seconds(file)
            else:
                self._times.append(_seconds(file))
                whole.append(file)
        self.add(whole)

    def _is_ahead(self, file: StoredObject) -> bool:
        """Whether a file was there at the first look, under whatever name, and dated after it."""
        if _seconds(file) <= self._latest:
            return False
        return self._watch.first_look is None or _content(file) in self._watch.ahead

    def is_fresh(self, modified: datetime) -> bool:
        """Whether a file of this time was written since the request, as far as can be told."""
        watch, seconds = self._watch, int(modified.timestamp())
        newer = watch.first_look is not None and (watch.newest is None or seconds > watch.newest)
        if newer and modified >= self._oldest:
            return True
        return seconds <= self._latest and super().is_fresh(modified)

    def decide(self) -> Arrived | Waiting:
        """Decide by what was seen."""
        if self._watch.first_look is None:
            self._note_first_look()
        newest = max((file.last_modified for file in self._fresh.values()), default=_moment(self._now))
        verdict = self.verdict(newest + timedelta(seconds=self._quiet()))
        if isinstance(verdict, Waiting) and self._ahead:
            return Waiting(f"{verdict.reason}; {len(self._ahead):,} dated after the first look, so {_AHEAD}")
        return verdict

    def _note_first_look(self) -> None:
        watch = self._watch
        watch.first_look = self._now
        if len(self._ahead) <= MAX_AHEAD:
            watch.ahead = sorted(self._ahead)
        else:
            self._times += self._ahead.values()
        watch.newest = max(self._times, default=None)

    def _quiet(self) -> float:
        """Return for how many seconds nothing has changed, and note a change."""
        watch, now, files = self._watch, self._now, [*self._fresh.values(), *self._partial]
        state = _digest(files)
        if state != watch.state:
            watch.state, watch.changed_at = state, now
        seen = now - (now if watch.changed_at is None else watch.changed_at)
        if watch.changed_at != self._first_look or not files:
            return seen
        return max(seen, now - max(map(_seconds, files)) - self.expectation.clock_skew)


_AHEAD = "the server's clock seems to be ahead, and they will count only when they change"


def _whole_name(path: str) -> str:
    """Return what a half-written file will be called; of others, their path."""
    ending = next((ending for ending in PARTIAL if path.lower().endswith(ending)), "")
    return path[: len(path) - len(ending)]


def _walk(target: Target, watch: Watch, files: list[StoredObject]) -> Generator[Request, Any, str | None]:
    """Collect a target's files, and return what stands in the way of seeing them."""
    fixed = _folder_of(literal_prefix(target.template, wildcard=target.kind is Kind.PATTERN))
    start = _folder_of(target.prefix)
    root = _first_folder(fixed)
    if root and not (target.kind is Kind.PREFIX and root == start):
        entry: Entry | None = yield Stat(root.rstrip("/"), follow=True)
        if entry is None or entry.sort not in _FOLDERS:
            if watch.first_look is None:
                raise NoSuchRoot(root)
            return f"there is no folder {root} any more"
    for path in _below(fixed, start):
        entry = yield Stat(path)
        if entry is None or entry.sort not in _FOLDERS:
            return _LINKED if entry and entry.sort is Sort.OTHER else None
    if target.kind is Kind.KEY:
        entry = yield Stat(target.prefix, follow=target.prefix == target.template)
        if entry is not None and entry.sort in _FILES:
            return _take(target.prefix, entry, files)
        return _LINKED if entry and entry.sort is Sort.OTHER else None
    return (yield from _descend(start, target.prefix, files))


_FOLDERS, _FILES = (Sort.FOLDER, Sort.UNTOLD), (Sort.FILE, Sort.UNTOLD)
_LINKED = "a part of the path is a symbolic link on the server, which is not followed"
_UNTOLD = "the server does not tell files from folders"
_UNDATED = "the server does not tell when files were modified"


def _descend(start: str, prefix: str, files: list[StoredObject]) -> Generator[Request, Any, str | None]:
    """Collect the files whose paths begin with a prefix, in a folder and those below it; names end in "/"."""
    folders = [start]
    while folders:
        folder = folders.pop()
        entries: Iterable[Entry] = (yield Folder(folder)) or ()
        for entry in entries:
            path = folder + entry.name
            if not f"{path}/".startswith(prefix[: len(path) + 1]):
                continue
            sort, known = yield from _look_closer(path, entry)
            if sort is Sort.UNTOLD:
                return _UNTOLD
            if sort is Sort.FOLDER:
                folders.append(f"{path}/")
            elif sort is Sort.FILE and path.startswith(prefix) and (problem := _take(path, known, files)):
                return problem
    return None


def _look_closer(path: str, entry: Entry) -> Generator[Request, Any, tuple[Sort, Entry]]:
    """Return what an entry is: some servers follow links where they list a folder, and some leave out what it is."""
    if entry.sort is Sort.OTHER or (entry.sort is Sort.FILE and entry.modified is not None):
        return entry.sort, entry
    known: Entry | None = yield Stat(path)
    if known is None:  # gone
        return Sort.OTHER, entry
    return entry.sort if known.sort is Sort.UNTOLD else known.sort, known


def _take(path: str, entry: Entry, files: list[StoredObject]) -> str | None:
    """Add a file, and return why it can't be."""
    if entry.modified is None:
        return _UNDATED
    files.append(StoredObject(path, _moment(entry.modified), entry.size))
    return None


def _folder_of(path: str) -> str:
    """Return a path up to its last "/", and with it; empty for the account's own folder."""
    return "".join(path.rpartition("/")[:2])


def _first_folder(folder: str) -> str:
    """Return the first part of a folder's path, with its "/"; empty where the path begins with no name."""
    found = re.match(r"/*[^/]+/", folder)
    return found.group() if found else ""


def _below(above: str, folder: str) -> Iterator[str]:
    """Return the paths of the folders between two, from the outer to the inner, without the outer."""
    for slash in re.finditer(r"(?<!/)/", folder):
        if slash.start() >= len(above):
            yield folder[: slash.start()]


def _seconds(file: StoredObject) -> int:
    return int(file.last_modified.timestamp())


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _digest(files: Iterable[StoredObject]) -> str:
    return digest(sorted((file.key, file.size, _seconds(file)) for file in files))


def _content(file: StoredObject) -> str:
    """Return a digest that is the same under another name: a file that is moved is none that was written."""
    return digest((file.size, _seconds(file)))


def digest(value: object) -> str:
    """Return a short text for something that is not to be shown."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
