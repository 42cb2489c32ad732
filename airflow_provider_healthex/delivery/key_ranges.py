"""The ranges of keys in which patients' objects lie, by the literal starts of their paths."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from airflow_provider_healthex.delivery.template import Kind, Target

_LAST_CHARACTER = "\U0010ffff"
_LAST_BEFORE_SURROGATES = "\ud7ff"


class KeyRange(NamedTuple):
    """
    Keys that follow each other: those with a prefix, or one key.

    :param prefix: its literal start; Python's order of strings, by code point, is S3's order of their UTF-8.
    :param exact: whether it is this one key.
    :param patient: the position of the patient it belongs to.
    :param path: the position of the path it is of.
    """

    prefix: str
    exact: bool
    patient: int
    path: int = 0

    @property
    def end(self) -> str:
        """The least text that is greater than every key of the range."""
        if self.exact:
            return self.prefix + "\0"
        begin = self.prefix.rstrip(_LAST_CHARACTER)  # which has no successor
        return begin[:-1] + chr(ord(begin[-1]) + 1) if begin else _LAST_CHARACTER * (len(self.prefix) + 1)

    @property
    def start_after(self) -> str:
        """The key to start after, to see the range's first key first: no key has that character."""
        last = self.prefix[-1]
        before = _LAST_BEFORE_SURROGATES if last == "\ue000" else chr(ord(last) - 1)  # no UTF-8 has a surrogate
        return self.prefix[:-1] + before + _LAST_CHARACTER

    def covers(self, other: KeyRange) -> bool:
        """Return whether every key of another range is one of this."""
        return other.prefix == self.prefix if self.exact else other.prefix.startswith(self.prefix)


def key_ranges(patient: int, targets: Iterable[Target]) -> list[KeyRange]:
    """Return where a patient's keys can be, without a range inside another."""
    found: list[KeyRange] = []
    for each in sorted(KeyRange(one.prefix, one.kind is Kind.KEY, patient, path) for path, one in enumerate(targets)):
        if not (found and found[-1].covers(each)):
            found.append(each)
    return found


def are_disjoint(some: Iterable[KeyRange]) -> bool:
    """Return whether no key lies in two ranges, so that each shows one patient's."""
    ordered = sorted(some)
    return all(each.prefix for each in ordered) and all(a.end <= b.prefix for a, b in pairwise(ordered))
