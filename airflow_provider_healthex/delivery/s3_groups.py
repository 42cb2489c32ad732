"""
Which key ranges of a path a poke lists together, by what the pokes before it showed.

Whole pages are cheaper where missing patients lie close together, and a request for each where they lie far apart. What
is remembered decides only what a poke costs. The `scan` of a group shows all of its key ranges, in at most
``sum(floor(n_i / 1000) + 1)`` requests, wherever they lie by now; so do all groups, as no key range is in two.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from operator import add
from os.path import commonprefix

from airflow_provider_healthex.delivery.key_ranges import KeyRange

#: Rows of a full page.
PAGE = 1_000

#: Ranges that are listed side by side. The AWS client's ``max_pool_connections`` can lower it (10 by default).
WIDTH = 8

#: A long group is split, to be listed side by side, into parts of at least so many pages. Each split reads at most a
#: page twice, so that all parts together cost at most 1.2 times as much.
LEAST_PART = 6

#: Seconds of a processor for a request, and for a row of its answer. Their ratio matters, and is alike on all machines.
REQUEST_SECONDS, ROW_SECONDS = 1.4e-3, 8e-6

#: The weight of the newest batch of requests in the mean of latencies.
NEWEST = 0.2

#: Key ranges that are listed together: their positions in key order.
Group = list[int]


class Latency:
    """How long requests wait for the storage just now."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def note(self, requests: int, rows: int, seconds: float) -> None:
        """Note how long a batch of requests took, with that many rows in all its answers."""
        waited = max(0.0, seconds - requests * REQUEST_SECONDS - rows * ROW_SECONDS)
        self._seconds = waited if self._seconds is None else self._seconds + NEWEST * (waited - self._seconds)

    @property
    def request_in_rows(self) -> float:
        """The number of rows that take as long as a request; all requests of a batch wait at the same time."""
        return (REQUEST_SECONDS + (self._seconds or 0.0) / WIDTH) / ROW_SECONDS


@dataclass
class Counts:
    """
    How many rows a scan saw.

    :param inside: each key range.
    :param before: each key range, and behind the last one; of those that are ``skipped``, at least.
    """

    inside: list[int]
    before: list[int]
    skipped: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, key_ranges: int) -> Counts:
        """Begin to count."""
        return cls([0] * key_ranges, [0] * (key_ranges + 1))


class Layout:
    """
    Where the rows of a path lay at the last pokes: two numbers for each patient.

    :param some: the key ranges of all patients.
    """

    def __init__(self, some: Iterable[KeyRange]) -> None:
        self.ordered = sorted(some)
        self._prefixes = [one.prefix for one in self.ordered]
        self._positions: dict[int, list[int]] = {}
        for position, one in enumerate(self.ordered):
            self._positions.setdefault(one.patient, []).append(position)
        self._inside = array("q", [0]) * len(self.ordered)
        self._before = array("q", [0]) * (len(self.ordered) + 1)
        self._is_known = False

    def groups(self, patients: Collection[int], request: float) -> list[Group]:
        """
        Divide some patients' key ranges into the groups that cost least, the longest first.

        :param request: the rows that cost as much as a request.
        """
        wanted = sorted(position for patient in patients for position in self._positions.get(patient, ()))
        if not self._is_known or len(wanted) < 2:
            return [wanted] if wanted else []
        starts = list(accumulate(map(add, self._before, chain([0], self._inside))))
        # No page reaches over a longer gap than a page. Shorter ones may cost more than a request, too.
        plans = [self._divide(wanted, starts, gap, request) for gap in (PAGE, request)]
        _, groups = min(plans, key=lambda plan: plan[0])
        return sorted(groups, key=len, reverse=True)

    def note(self, group: Group, counts: Counts) -> None:
        """Remember what the scan of a group saw."""
        for position, rows in zip(group, counts.inside, strict=True):
            self._inside[position] = rows
        # The first poke lists all in one group, and sees what lies behind it.
        ends = group if self._is_known else [*group, len(self.ordered)]
        for number, (first, last) in enumerate(pairwise(ends), start=1):
            between = max(0, counts.before[number] - sum(self._inside[first + 1 : last]))
            if number in counts.skipped:
                between = max(between, sum(self._before[first + 1 : last + 1]))
            self._before[first + 1 : last + 1] = array("q", [0] * (last - first - 1) + [between])
        self._is_known = True

    def _divide(self, wanted: Group, starts: list[int], gap: float, request: float) -> tuple[float, list[Group]]:
        """Separate what lies that far apart, and list each group by what is cheaper; return the cost in rows."""
        total, groups = 0.0, []
        for group in self._separate(wanted, starts, gap):
            alone = sum(request * (self._inside[one] // PAGE + 1) + self._inside[one] for one in group)
            pages, rows, parts = self._pages(group, starts)
            paged = pages * request + rows
            total += min(alone, paged)
            groups += parts if paged < alone else [[one] for one in group]
        return total, groups

    def _separate(self, wanted: Group, starts: list[int], gap: float) -> Iterator[Group]:
        begin = 0
        for index in range(1, len(wanted)):
            before = wanted[index - 1]
            if starts[wanted[index]] - starts[before] - self._inside[before] >= gap:
                yield wanted[begin:index]
                begin = index
        yield wanted[begin:]

    def _pages(self, group: Group, starts: list[int]) -> tuple[int, int, list[Group]]:
        """Walk a group in whole pages, as `scan` would; return pages, rows and groups."""
        ends = [starts[position] + self._inside[position] for position in group]
        extent = starts[self._behind(group)]
        longest = max(LEAST_PART, -(-(ends[-1] - starts[group[0]]) // (WIDTH * PAGE)))
        parts: list[Group] = []
        pages = part = index = first = 0
        cursor = starts[group[0]]
        while True:
            cursor, pages, part = cursor + PAGE, pages + 1, part + 1
            index = bisect_left(ends, cursor, index)  # the first one that may have more rows
            if index == len(group) or cursor >= extent:
                return pages, pages * PAGE - max(0, cursor - extent), [*parts, group[first:]]
            begin = starts[group[index]]
            if begin >= cursor or (part >= longest and cursor - begin <= PAGE):
                parts.append(group[first:index])
                first, cursor, part = index, begin, 0

    def _behind(self, group: Sequence[int]) -> int:
        """Return the position of the first key range that can't be on a group's pages, by what its keys begin with."""
        prefix = commonprefix([self._prefixes[group[0]], self._prefixes[group[-1]]])  # noqa: RUF071 - of keys
        end = KeyRange(prefix, False, 0).end if prefix else None
        return len(self.ordered) if end is None else bisect_left(self._prefixes, end, group[-1])
