"""
How a template's parts match a key, in time linear in the key's length.

A regular expression with several stars tries their lengths against each other: `*/*/{id}/*/*.json` took half a minute
for a key of 1,024 characters. Here one pass from the template's end finds, for each part, all places of the key from
which the rest matches. A second pass, from the beginning, then never takes a wrong turn. The places are the bits of one
number, so that a part costs a few operations on it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

#: Places that may be tried for each character of a key and each part of its template, where a variable stands twice.
TRIES = 4


class TooManyReadings(Exception):
    """A variable that stands twice could be at more places than are tried."""


@dataclass(frozen=True)
class Text:
    """
    Text of one length: literals, ``?`` and ``[…]``.

    :param pattern: of all its places, also of those that overlap; its group 1 is the text.
    """

    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Star:
    """Any characters, or none."""


@dataclass(frozen=True)
class Name:
    """A variable: characters without a ``/``, at least one; where the same stood before, those again."""

    name: str


Part = Text | Star | Name
Span = tuple[int, int]

#: A star, or a bracket with its end: a star in it is none.
STAR_OR_CLASS = re.compile(r"(\*+|\[!?\]?[^\]]*\])")


def glob_parts(text: str) -> Iterator[Part]:
    """Split a glob as `fnmatch` reads it."""
    fixed = ""
    for token in STAR_OR_CLASS.split(text):
        if token.startswith("*"):
            yield from _text(fixed)
            yield Star()
            fixed = ""
        else:
            fixed += re.sub(r"^\(\?s:(.*)\)\\[zZ]$", r"\1", fnmatch.translate(token), flags=re.DOTALL)
    yield from _text(fixed)


def literal_parts(text: str) -> Iterator[Part]:
    """Return literal text as parts."""
    yield from _text(re.escape(text))


def _text(regex: str) -> Iterator[Part]:
    if regex:
        yield Text(re.compile(f"(?=({regex}))", re.DOTALL))


class KeyMatch:
    """
    The ways in which a template matches a key.

    Places are counted from the key's end: bit ``n`` of a set of places is the one that ``n`` characters follow.

    :param parts: of the template.
    :param key: the key.
    """

    def __init__(self, parts: Sequence[Part], key: str) -> None:
        self._parts, self._key = parts, key
        self._tries = TRIES * (len(parts) + 1) * (len(key) + 1)
        names = [part.name if isinstance(part, Name) else None for part in parts]
        self._first = {name: names.index(name) for name in names if name}
        #: For each part, the places from which it and all parts after it match, repeated variables taken as new ones.
        self._open = [1]
        inside = int("0".join("1" * len(folder) for folder in key.split("/")) or "0", 2)  # followed by no "/"
        for part in reversed(parts):
            self._open.append(self._before(part, self._open[-1], inside))
        self._open.reverse()

    def spans(self, *, longest: bool) -> dict[str, Span] | None:
        """
        Return where the variables stand in the key, or None where it doesn't match.

        Of several ways the first is returned: each part, from left to right, is as short as it can be, or as long.

        :raises TooManyReadings: after too many tries; only where a variable stands twice.
        """
        if not self._open[0] >> len(self._key) & 1:
            return None
        found: dict[str, Span] = {}
        starts = [0]  # of each part so far
        untried = [self._ends(0, 0, found, longest)]
        while untried:
            index, end = len(untried) - 1, next(untried[-1], None)
            if end is None:
                untried.pop()
                starts.pop()
                continue
            self._tries -= 1
            if self._tries < 0:
                raise TooManyReadings
            if index == len(self._parts):
                return found
            part = self._parts[index]
            if isinstance(part, Name) and self._first[part.name] == index:
                found[part.name] = (starts[-1], end)
            starts.append(end)
            untried.append(self._ends(index + 1, end, found, longest))
        return None

    def _before(self, part: Part, after: int, inside: int) -> int:
        """Return the places from which a part leads to one of some places."""
        if not after:
            return 0
        if isinstance(part, Star):
            every = (1 << len(self._key) + 1) - 1
            return every & -(after & -after)
        if isinstance(part, Name):
            # The sum's carry runs from each place through the rest of the folder's name.
            ends = after & inside
            return ((((inside + ends) ^ inside) | ends) & inside) << 1
        places, length = bytearray(b"0" * (len(self._key) + 1)), 0
        for found in part.pattern.finditer(self._key):
            places[found.start()] = ord("1")
            length = found.end(1) - found.start()
        return int(places, 2) & (after << length)

    def _ends(self, index: int, start: int, found: Mapping[str, Span], longest: bool) -> Iterator[int]:
        """Return where a part that begins at a place can end, so that the rest still matches."""
        if index == len(self._parts):
            yield start
            return
        part, first, last = self._parts[index], start, len(self._key)
        if isinstance(part, Text):
            first = last = part.pattern.match(self._key, start).end(1)  # type: ignore[union-attr]
        elif isinstance(part, Name) and self._first[part.name] < index:
            begin, end = found[part.name]
            if not self._key.startswith(self._key[begin:end], start):
                return
            first = last = start + end - begin
        elif isinstance(part, Name):
            slash = self._key.find("/", start)
            first, last = start + 1, last if slash < 0 else slash
        size = len(self._key)
        ends = self._open[index + 1] & ((1 << (size - first + 1)) - 1)
        ends = ends >> (size - last) << (size - last)
        while ends:
            bit = ends & -ends if longest else 1 << (ends.bit_length() - 1)
            ends ^= bit
            yield size - bit.bit_length() + 1
