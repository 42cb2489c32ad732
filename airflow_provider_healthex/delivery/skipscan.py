"""
Which ``ListObjectsV2`` requests show some stretches of a bucket's keys, without paging through all between them.

A poll of a cohort wants the objects of its missing patients only: thousands of them at first, one at the end, among
objects of which there may be few or millions, and it knows neither number. One cursor walks the stretches in key
order. Each request asks for what follows the cursor or, where that is further, the next stretch's beginning; so a page
serves as many stretches as it reaches, and what lies between them is skipped where it is longer than a page.

What it costs, with ``N`` keys under the stretches' common prefix, ``n_i`` in stretch ``i`` and 1,000 in a full page:

* Every page but the last is full, lies under the common prefix, and begins behind the page before it. So there are at
  most ``floor(N / 1000) + 1`` requests.
* Charge a request to the first stretch that isn't finished then. No key lies between where it begins to read and that
  stretch's keys: so a full page either ends behind the stretch, which is then finished, or holds 1,000 of its keys. So
  there are at most ``sum(floor(n_i / 1000) + 1)`` requests.

Both hold, hence the lesser does. ``floor(n / 1000) + 1`` is ``max(1, ceil(n / 1000))``, but for a stretch of exactly
1,000, 2,000, … keys: its last page doesn't tell that nothing follows. No strategy that decides page by page could have
both sums without that: a listing of the stretch alone would tell, and show nothing of the next.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from operator import itemgetter
from os.path import commonprefix
from typing import Any, NamedTuple

from airflow_provider_healthex.delivery.listing import Look, Rows, Walk, is_truncated, server_time

_key = itemgetter("Key")
_LAST_CHARACTER = "\U0010ffff"


class Span(NamedTuple):
    """
    A stretch of keys: those with a prefix, or one key.

    :param prefix: its literal beginning; Python's order of strings, by code point, is S3's order of their UTF-8.
    :param exact: whether it is this one key.
    :param owner: whose it is; what the caller knows it by.
    """

    prefix: str
    exact: bool
    owner: int

    @property
    def end(self) -> str:
        """The least text that is greater than every key of the span."""
        return self.prefix + "\0" if self.exact else self.prefix[:-1] + chr(ord(self.prefix[-1]) + 1)

    @property
    def start_after(self) -> str:
        """The key to start after, to see the span's first key first: nobody's key has that character."""
        return self.prefix[:-1] + chr(ord(self.prefix[-1]) - 1) + _LAST_CHARACTER


def are_disjoint(spans: Iterable[Span]) -> bool:
    """Whether no key lies in two spans, so that each can be looked for by itself."""
    ordered = sorted(spans)
    return all(span.prefix for span in ordered) and all(a.end <= b.prefix for a, b in pairwise(ordered))


def skip_scan(spans: Iterable[Span], take: Callable[[int, Rows], None]) -> Look[datetime | None]:
    """
    Walk disjoint spans.

    :param spans: in any order.
    :param take: called with a span's owner and some of its rows, as often as pages hold some.
    :returns: the storage's clock by the first page, or None.
    :raises UnusableListing: where the storage doesn't list in key order, or lists what it wasn't asked for.
    :raises IncompleteListing: where a listing breaks off.
    """
    ordered = sorted(spans)
    if not ordered:
        return None
    now: datetime | None = None
    walk, position, first = Walk(), 0, True
    request: dict[str, Any] | None = _request(walk.last, ordered[0], ordered[-1])
    while request is not None:
        page = yield request
        now, first = (server_time(page) if first else now), False
        rows, more = walk.rows(request, page), is_truncated(page)
        position = _hand_out(rows, ordered, position, walk.last if more else None, take)
        if not more or position == len(ordered):
            return now
        follow = _request(walk.last, ordered[position], ordered[-1])
        request = follow if rows else walk.next_request(request, page)
    return now


def scan_all(prefix: str, take: Callable[[Rows], None]) -> Look[datetime | None]:
    """Walk everything under a prefix, for paths that don't tell where a patient's keys begin; raises as the other."""
    now: datetime | None = None
    request: dict[str, Any] | None = {"Prefix": prefix}
    walk, first = Walk(), True
    while request is not None:
        page = yield request
        now, first = (server_time(page) if first else now), False
        take(walk.rows(request, page))
        request = walk.next_request(request, page)
    return now


def _request(cursor: str, span: Span, last: Span) -> dict[str, Any]:
    """Ask for what follows both the cursor and where the span begins, and ends with the last of the spans."""
    prefix = commonprefix([span.prefix, last.prefix])  # noqa: RUF071 - of keys, not of folders
    start_after = max(cursor, span.start_after)
    return {"Prefix": prefix, **({"StartAfter": start_after} if start_after >= prefix else {})}


def _hand_out(
    rows: Rows, spans: Sequence[Span], position: int, last: str | None, take: Callable[[int, Rows], None]
) -> int:
    """
    Give each span its rows, and return the position of the first that may have more.

    :param last: the page's last key where others follow it, or None.
    """
    at = 0
    while position < len(spans):
        span = spans[position]
        if last is not None and last < span.prefix:
            break
        at = bisect_left(rows, span.prefix, at, key=_key)
        until = bisect_left(rows, span.end, at, key=_key)
        if until > at:
            take(span.owner, rows[at:until])
        if last is not None and last < span.end and not (span.exact and last == span.prefix):
            break
        at, position = until, position + 1
    return position
