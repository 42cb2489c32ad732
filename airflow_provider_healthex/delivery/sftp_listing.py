"""
Which requests show some patients' files on an SFTP server, without making them.

The folders of the awaited patients are listed, and no others. Files grow under their name, or under another and are
renamed: names of half-written files are known (`PARTIAL`). Symbolic links below the path's literal part are not
followed: they may lead to another patient's files. The literal part is its author's, and may be one.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

from airflow_provider_healthex.delivery.arrival import Expectation
from airflow_provider_healthex.delivery.key_ranges import are_disjoint, key_ranges
from airflow_provider_healthex.delivery.patient_keys import PatientKeys
from airflow_provider_healthex.delivery.plan import Plan, Steps, Take, alone, together
from airflow_provider_healthex.delivery.rule import StoredObject
from airflow_provider_healthex.delivery.sftp_clock import SftpClock, SftpClockPoke, moment
from airflow_provider_healthex.delivery.sftp_requests import (
    Entry,
    EntryType,
    ListFolder,
    NoSuchRoot,
    Obstacle,
    Server,
    Stat,
)
from airflow_provider_healthex.delivery.template import Kind, Target, literal_prefix

#: How uploading programs name a file that isn't whole yet.
PARTIAL = (".part", ".filepart", ".tmp")

#: Seconds between the two listings that must agree, where pokes are not closer.
CONFIRMATION = 5.0

#: Folders that are listed side by side.
WIDTH = 32

_AHEAD = "the server's clock seems to be ahead, and they will count only when they change"

_LINKED = "a part of the path is a symbolic link on the server, which is not followed"
_NO_TYPES = "the server does not report which entries are folders"
_NO_TIMES = "the server does not report when files were modified"

#: Takes files as they are found.
_Add = Callable[[Sequence[StoredObject]], None]

_FOLDERS, _FILES = (EntryType.FOLDER, EntryType.UNKNOWN), (EntryType.FILE, EntryType.UNKNOWN)


class SftpListing:
    """
    How the files of a wait are listed on a server. Its clock is inferred (`sftp_clock`).

    :param confirmation: seconds until a second listing must show the same: a file may just be growing.
    :param clock: this machine's, in epoch seconds.
    """

    needs_objects = True  # to see a change of any of them

    def __init__(
        self,
        expectation: Expectation,
        targets: Sequence[Sequence[Target]],
        *,
        confirmation: float = CONFIRMATION,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.confirmation: float | None = confirmation
        self.targets = targets
        self.marker = expectation.rule.marker
        self.now = clock
        self.clock = SftpClock(expectation.rule.clock_skew)
        self.patient_keys: PatientKeys | None = None
        self.shared: list[Target] = []  # that show every patient's files once
        paths = [one for index, own in enumerate(targets) for one in key_ranges(index, own)]
        if len(targets) > 1 and not are_disjoint(paths):
            ids, first = [patient.values for patient in expectation.patients], [own[0] for own in targets]
            self.patient_keys = PatientKeys(expectation.shared_path(), ids, first, self.marker, whole_name)
            self.shared = [first[one.path] for one in key_ranges(0, first)]

    def start(self) -> SftpPoke:
        """Start a poke."""
        return SftpPoke(self)

    def to_dict(self) -> dict[str, Any]:
        """Return what pokes have shown so far, for another process."""
        return self.clock.to_dict()

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Continue with what another process of this wait saw."""
        self.clock.restore(kept)


class SftpPoke:
    """One listing of some patients' files."""

    def __init__(self, listing: SftpListing) -> None:
        self._listing = listing
        self._clock = SftpClockPoke(listing.clock, listing.now())
        self._obstacles: dict[int, str] = {}
        self._partial: dict[int, list[StoredObject]] = {}

    def list(self, indices: Sequence[int], take: Take) -> Plan[None]:
        """Plan the requests."""
        listing = self._listing
        (server,) = yield [Server()]
        listing.clock.expect(server)
        clock = self._clock = SftpClockPoke(listing.clock, listing.now())

        def sort_out(index: int, files: Sequence[StoredObject]) -> None:
            whole = []
            for file in files:
                name = whole_name(file.key)
                if not any(_belongs(target, name, listing.marker) for target in listing.targets[index]):
                    continue
                if name != file.key:
                    self._partial.setdefault(index, []).append(file)
                elif clock.is_usable(index, file):
                    whole.append(file)
            take(index, whole)

        is_first = listing.clock.first_poke is None
        if listing.patient_keys is None:
            wanted = [(index, listing.targets[index]) for index in indices]
            self._obstacles = yield from list_files(wanted, sort_out, is_first_poke=is_first)
        elif indices:
            owned = listing.patient_keys.hand_out(set(indices), sort_out)
            shared = [(position, [target]) for position, target in enumerate(listing.shared)]
            found = yield from list_files(shared, lambda _, files: owned(files), is_first_poke=is_first)
            self._obstacles = {
                index: text
                for position, text in found.items()
                for index in indices
                if listing.targets[index][0].prefix.startswith(listing.shared[position].prefix)
            }
        clock.finish([index for index in indices if index not in self._obstacles], self._obstacles)

    def is_fresh(self, index: int, row: StoredObject, floor: datetime) -> bool:
        """Return whether a file was written since the request, as far as that can be known."""
        return self._clock.is_fresh(index, row, floor)

    def quiet_for(self, index: int, fresh: Sequence[StoredObject], newest: datetime | None) -> float:
        """Return for how many seconds a patient's files have not changed, those still being written included."""
        if index in self._obstacles:  # not seen isn't gone
            return 0.0
        return self._clock.quiet_for(index, [*fresh, *self._partial.get(index, ())], self._listing.now())

    def is_later_than(self, moment: datetime) -> bool:
        """Return True: a second listing confirms what the first one showed."""
        return True

    def obstacle(self, index: int) -> str | None:
        """Return what prevented seeing a patient's files."""
        return self._obstacles.get(index)

    def remark(self) -> str:
        """Return what a person should know of this listing."""
        ahead, hidden = self._clock.ahead_count, len(self._obstacles)
        remark = f"; {ahead:,} dated after the first poke, so {_AHEAD}" if ahead else ""
        if hidden and len(self._listing.targets) > 1:
            remark += f"; {hidden:,} patient{'s' if hidden > 1 else ''} can't be seen: {min(self._obstacles.values())}"
        return remark

    def state(self, index: int) -> object:
        """Return a digest of a patient's fresh and half-written files."""
        return self._clock.state(index)


def _belongs(target: Target, name: str, marker: str | None) -> bool:
    return target.matches(name) or bool(marker and target.holds_marker(name, marker))


class _Folder(NamedTuple):
    """
    A folder to list.

    :param path: ends in "/", or is empty.
    :param prefix: what the paths of awaited files begin with.
    :param is_found: a listing showed it, and not the path.
    """

    path: str
    prefix: str
    is_found: bool = False


def list_files(
    targets: Iterable[tuple[int, Sequence[Target]]],
    take: Take,
    *,
    is_first_poke: bool,
    by_folder: bool = False,
) -> Plan[dict[int, str]]:
    """
    List the files of some patients.

    :param targets: each patient's, with the patient's position.
    :param take: called with a patient's position and all files below their targets.
    :param is_first_poke: whether a missing first folder is a mistake in the path, rather than trouble.
    :param by_folder: call ``take`` for each folder of one target, so that memory doesn't grow with the files; also
        where the rest can't be seen.
    :returns: by position, what prevented seeing a patient's files.
    :raises NoSuchRoot: at the first poke.
    """
    awaited = list(targets)
    roots = {root for _, own in awaited for one in own if (root := _root(one))}
    above = Counter(folder for _, own in awaited for one in own for folder in _folders_above(one))
    shared = [Stat(folder) for folder, count in above.items() if count > 1]
    followed = {root: Stat(root.rstrip("/"), follow=True) for root in sorted(roots)}
    known = dict((yield from together(map(_stat, [*followed.values(), *shared]), WIDTH)))
    missing_roots = {
        root for root, request in followed.items() if (entry := known[request]) is None or entry.type not in _FOLDERS
    }
    if missing_roots and is_first_poke:
        raise NoSuchRoot(min(missing_roots))
    missing = {root: Obstacle(f"there is no folder {root} any more") for root in missing_roots}
    obstacles: dict[int, str] = {}

    def collect(walk: Callable[..., Generator[Any, Any, None]], index: int, own: Sequence[Target]) -> Steps[None]:
        files: dict[str, StoredObject] = {}  # once, also where paths overlap

        def add(rows: Sequence[StoredObject]) -> None:
            if by_folder:
                take(index, rows)
            else:
                files.update((row.key, row) for row in rows)

        try:
            yield from walk(own, known, missing, add)
        except Obstacle as obstacle:
            obstacles[index] = str(obstacle)
        else:
            if not by_folder:
                take(index, list(files.values()))

    if len(awaited) == 1:
        yield from collect(_walk_wide, *awaited[0])
    else:
        yield from together((collect(_walk, index, own) for index, own in awaited), WIDTH)
    return obstacles


def whole_name(path: str) -> str:
    """Return what a half-written file will be called; of others, their path."""
    ending = next((ending for ending in PARTIAL if path.lower().endswith(ending)), "")
    return path[: len(path) - len(ending)]


def _stat(request: Stat) -> Steps[tuple[Stat, Entry | None]]:
    return request, (yield request)


def _root(target: Target) -> str | None:
    """Return the first folder of a path's literal part, None where the path itself is that folder."""
    root = _first_folder(_literal_folder(target))
    return root if root and not (target.kind is Kind.PREFIX and root == _folder_of(target.prefix)) else None


def _literal_folder(target: Target) -> str:
    return _folder_of(literal_prefix(target.template, wildcard=target.kind is Kind.PATTERN))


def _folders_above(target: Target) -> Iterator[str]:
    """Return the folders that a path leads through below its literal part."""
    return _between(_literal_folder(target), _folder_of(target.prefix))


def _walk(
    own: Sequence[Target], known: Mapping[Stat, Entry | None], missing: Mapping[str, Obstacle], add: _Add
) -> Steps[None]:
    """Collect the files of a patient, listing one folder after the other."""
    folders = yield from _enter(own, known, missing, add)
    while folders:
        folders += yield from _list_folder(folders.pop(), add)


def _walk_wide(
    own: Sequence[Target], known: Mapping[Stat, Entry | None], missing: Mapping[str, Obstacle], add: _Add
) -> Plan[None]:
    """Collect the same, listing folders of one depth side by side."""
    folders = yield from alone(_enter(own, known, missing, add))
    while folders:
        below = yield from together((_list_folder(folder, add) for folder in folders), WIDTH)
        folders = list(chain.from_iterable(below))


def _enter(
    own: Sequence[Target], known: Mapping[Stat, Entry | None], missing: Mapping[str, Obstacle], add: _Add
) -> Steps[list[_Folder]]:
    """Collect single files; of other targets, return the folder to list."""
    folders = []
    for target in own:
        if (root := _root(target)) and root in missing:
            raise missing[root]
        if (yield from _is_reachable(target, known)):
            if target.kind is Kind.KEY:
                yield from _collect_file(target, add)
            else:
                folders.append(_Folder(_folder_of(target.prefix), target.prefix))
    return folders


def _is_reachable(target: Target, known: Mapping[Stat, Entry | None]) -> Steps[bool]:
    """Return whether the folders that a path leads through are there."""
    for request in map(Stat, _folders_above(target)):
        entry: Entry | None = known[request] if request in known else (yield request)
        if entry is None:
            return False
        _refuse_link(entry)
        if entry.type not in _FOLDERS:
            return False
    return True


def _collect_file(target: Target, add: _Add) -> Steps[None]:
    entry = yield Stat(target.prefix, follow=target.prefix == target.template)
    if entry is not None:
        _refuse_link(entry)
        if entry.type in _FILES:
            add([_file(target.prefix, entry)])


def _list_folder(folder: _Folder, add: _Add) -> Steps[list[_Folder]]:
    """Collect a folder's files, and return the folders in it that may have more."""
    below: list[_Folder] = []
    files: list[StoredObject] = []
    # Some servers follow links where they list a folder.
    if (
        folder.is_found
        and (yield from _inspect(folder.path[:-1], Entry("", EntryType.FOLDER))).type is not EntryType.FOLDER
    ):
        return below
    entries: Iterable[Entry] = (yield ListFolder(folder.path)) or ()
    for entry in entries:
        path = folder.path + entry.name
        if not f"{path}/".startswith(folder.prefix[: len(path) + 1]):
            continue
        if entry.type is EntryType.UNKNOWN or (entry.type is EntryType.FILE and entry.modified is None):
            entry = yield from _inspect(path, entry)
        if entry.type is EntryType.UNKNOWN:
            raise Obstacle(_NO_TYPES)
        if entry.type is EntryType.FOLDER:
            below.append(_Folder(f"{path}/", folder.prefix, is_found=True))
        elif entry.type is EntryType.FILE and path.startswith(folder.prefix):
            files.append(_file(path, entry))
    add(files)
    return below


def _inspect(path: str, entry: Entry) -> Steps[Entry]:
    """Request what an entry is, where a listing may not have shown it."""
    known: Entry | None = yield Stat(path)
    if known is None:  # gone
        return entry._replace(type=EntryType.OTHER)
    return known._replace(type=entry.type) if known.type is EntryType.UNKNOWN else known


def _refuse_link(entry: Entry) -> None:
    if entry.type is EntryType.OTHER:
        raise Obstacle(_LINKED)


def _file(path: str, entry: Entry) -> StoredObject:
    if entry.modified is None:
        raise Obstacle(_NO_TIMES)
    return StoredObject(path, moment(entry.modified), entry.size)


def _folder_of(path: str) -> str:
    """Return a path up to its last "/", and with it; empty for the account's own folder."""
    return "".join(path.rpartition("/")[:2])


def _first_folder(folder: str) -> str:
    """Return the first part of a folder's path, with its "/"; empty where the path begins with no name."""
    found = re.match(r"/*[^/]+/", folder)
    return found.group() if found else ""


def _between(above: str, folder: str) -> Iterator[str]:
    """Return the paths of the folders between two, from the outer to the inner, without the outer."""
    for slash in re.finditer(r"(?<!/)/", folder):
        if slash.start() >= len(above):
            yield folder[: slash.start()]
