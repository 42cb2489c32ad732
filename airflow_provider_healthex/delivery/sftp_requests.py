"""What a plan requests of an SFTP server, how it is answered, and what prevents seeing files there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class EntryType(Enum):
    """The type of a folder's entry."""

    FILE = "file"
    FOLDER = "folder"
    OTHER = "other"  # a symbolic link, a device
    UNKNOWN = "unknown"  # the server doesn't report it


class Entry(NamedTuple):
    """One entry of a folder."""

    name: str
    type: EntryType
    size: int = 0  # bytes
    modified: int | None = None  # seconds since the epoch by the server's clock; None where it isn't reported


@dataclass(frozen=True)
class Stat:
    """Requests the `Entry` at a path, None where there is none; ``follow`` a symbolic link to what it leads to."""

    path: str
    follow: bool = False


@dataclass(frozen=True)
class ListFolder:
    """Requests the entries of a folder, None where there is none (any more); the empty path is the account's own."""

    path: str  # ends in "/", or is empty


@dataclass(frozen=True)
class Server:
    """Requests a digest of the server, the account and the folder that paths begin at."""


class NoSuchRoot(Exception):
    """The path's first folder isn't there: the account sees another root than the author, or there is a typo."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.folder = folder


class Obstacle(Exception):
    """Something on the server prevents seeing a patient's files."""
