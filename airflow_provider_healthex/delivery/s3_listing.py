"""
Which ``ListObjectsV2`` requests show some patients' objects, without making them.

A poke wants the objects of its missing patients only. A cursor walks their key ranges in key order (`scan`). Each
request lists what follows the cursor or, where that is further, the start of the next range; so a page serves as many
patients as it reaches, and what lies between them is skipped where it is longer than a page. With ``N`` keys under the
ranges' common prefix, ``n_i`` in range ``i`` and 1,000 in a full page this costs:

* Every page but the last is full, lies under the common prefix, and starts behind the page before it. So there are at
  most ``floor(N / 1000) + 1`` requests.
* Charge a request to the first range that isn't finished then. No key lies between where it starts to read and that
  range's keys: so a full page either ends behind the range, which is then finished, or holds 1,000 of its keys. So
  there are at most ``sum(floor(n_i / 1000) + 1)`` requests.

Both hold for the first listing of a path, hence the lesser does. Later ones know where rows lay, and make several such
walks side by side where that costs less (`s3_groups`): the second bound holds for them, too. ``floor(n / 1000) + 1`` is
``max(1, ceil(n / 1000))``, but for a key range of exactly 1,000, 2,000, … keys: its last page doesn't show that nothing
follows.

Where a path starts alike for all patients (a glob before the id), everything under that start is listed instead
(`scan_all`), and `patient_keys` knows whose it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from itertools import chain
from os.path import commonprefix
from time import perf_counter
from typing import Any, TypeVar, cast

from airflow_provider_healthex.delivery.arrival import Expectation
from airflow_provider_healthex.delivery.key_ranges import KeyRange, are_disjoint, key_ranges
from airflow_provider_healthex.delivery.patient_keys import PatientKeys
from airflow_provider_healthex.delivery.plan import Plan, Steps, Take, alone, together
from airflow_provider_healthex.delivery.rule import StoredObject
from airflow_provider_healthex.delivery.s3_groups import PAGE, WIDTH, Counts, Group, Latency, Layout
from airflow_provider_healthex.delivery.template import Target
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.moments import utc_now

T = TypeVar("T")

Page = Mapping[str, Any]
#: Arguments of a ``list_objects_v2``, without the bucket.
Request = dict[str, Any]

#: So many pages without a row may follow each other.
MAX_EMPTY_PAGES = 100

_UNSORTED = (
    "its keys are not in order: use a general purpose bucket; directory buckets (S3 Express) and some other stores "
    "list in no order"
)


class UnusableListing(HealthExConfigurationError):
    """A storage lists so that arrival can't be decided, and will again; the text names no key."""


class IncompleteListing(Exception):
    """A listing broke off without saying so: nothing may be decided on what it showed. Another may be whole."""


class S3Listing:
    """
    How the objects of a wait are listed in a bucket. S3's own clock dates them, and the pages that show them.

    :param clock: this machine's, for a storage that sends no ``Date``.
    """

    confirmation: float | None = None
    needs_objects = False

    def __init__(
        self,
        expectation: Expectation,
        targets: Sequence[Sequence[Target]],
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.clock = clock
        self.key_ranges = [key_ranges(index, own) for index, own in enumerate(targets)]
        paths: dict[int, list[KeyRange]] = {}
        for one in chain.from_iterable(self.key_ranges):
            paths.setdefault(one.path, []).append(one)
        # Of each path by itself: a policy may grant these prefixes (s3:prefix), and not what they have in common.
        self.layouts = [Layout(own) for own in paths.values()]
        self.latency = Latency()
        self.patient_keys: PatientKeys | None = None
        disjoint = are_disjoint(one for own in self.key_ranges for one in own)
        self.is_everything = not disjoint and len(targets) == 1  # a glob that starts with a star
        if not disjoint and not self.is_everything:
            ids = [patient.values for patient in expectation.patients]
            first = [own[0] for own in targets]
            self.patient_keys = PatientKeys(expectation.shared_path(), ids, first, expectation.rule.marker)

    def start(self) -> S3Poke:
        """Start a poke."""
        return S3Poke(self)

    def to_dict(self) -> dict[str, Any]:
        """Return what pokes have shown so far: nothing that another process needs."""
        return {}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Continue with what another process saw."""


class S3Poke:
    """One listing of some patients' objects in a bucket."""

    def __init__(self, listing: S3Listing) -> None:
        self._listing = listing
        self._now = datetime.min.replace(tzinfo=timezone.utc)

    def list(self, indices: Sequence[int], take: Take) -> Plan[None]:
        """Plan the requests."""
        listing = self._listing
        # Read before the first request, as a Date is: read after a slow listing, it would let objects settle early.
        began = listing.clock()
        if listing.patient_keys is not None:
            now = yield from alone(
                scan_all(listing.patient_keys.prefix, listing.patient_keys.hand_out(set(indices), take))
            )
        elif listing.is_everything:
            now = yield from alone(scan_all("", lambda rows: take(0, rows)))
        else:
            patients, request = set(indices), listing.latency.request_in_rows
            scans = [
                _scan_group(layout, group, take)
                for layout in listing.layouts
                for group in layout.groups(patients, request)
            ]
            moments = yield from _timed(together(scans, WIDTH), listing.latency)
            now = min(filter(None, moments), default=None)
        self._now = now or began

    def is_fresh(self, index: int, row: StoredObject, floor: datetime) -> bool:
        """Return whether an object was written since the request."""
        return row.last_modified >= floor

    def quiet_for(self, index: int, fresh: Sequence[StoredObject], newest: datetime | None) -> float:
        """Return the age of a patient's newest object by S3's clock, in seconds."""
        return (self._now - newest).total_seconds() if newest else 0.0

    def is_later_than(self, moment: datetime) -> bool:
        """Return whether the listing began after a moment of S3's clock, which counts whole seconds."""
        return moment < self._now

    def obstacle(self, index: int) -> str | None:
        """Return None: S3 shows everything, or answers with an error."""
        return None

    def remark(self) -> str:
        """Return an empty text."""
        return ""

    def state(self, index: int) -> object:
        """Return None: an object of S3 is whole or not there."""
        return None


def _scan_group(layout: Layout, group: Group, take: Take) -> Steps[datetime | None]:
    counts = Counts.of(len(group))
    now = yield from scan((layout.ordered[position] for position in group), take, counts)
    layout.note(group, counts)
    return now


def _timed(plan: Plan[T], latency: Latency) -> Plan[T]:
    """Note how long each batch of a plan takes."""
    answers: Any = None
    while True:
        try:
            batch = plan.send(answers)
        except StopIteration as end:
            return cast("T", end.value)
        began = perf_counter()
        answers = yield batch
        latency.note(len(batch), sum(len(page.get("Contents") or ()) for page in answers), perf_counter() - began)


def scan(some: Iterable[KeyRange], take: Take, counts: Counts | None = None) -> Steps[datetime | None]:
    """
    Walk disjoint key ranges in key order.

    :param take: called with a key range's patient and some of its rows, as often as pages hold some.
    :param counts: counts the rows.
    :returns: the storage's clock by the first page, or None.
    :raises UnusableListing: where keys are not in order, or of another prefix.
    :raises IncompleteListing: where a listing breaks off.
    """
    ordered = sorted(some)
    if not ordered:
        return None
    now: datetime | None = None
    counts = counts or Counts.of(len(ordered))
    pages, position = Pages(), 0
    request: Request | None = _request(pages.last, ordered[0], ordered[-1])
    while request is not None:
        page = yield request
        now = now or server_time(page)
        rows, is_last = pages.rows(request, page), not is_truncated(page)
        position = _hand_out(rows, ordered, position, None if is_last else pages.last, take, counts)
        if is_last or position == len(ordered):
            counts.before[-1] += 0 if is_last else PAGE  # which may follow
            return now
        follow = _request(pages.last, ordered[position], ordered[-1])
        skips = follow["Prefix"] != request["Prefix"] or follow.get("StartAfter") != pages.last
        if rows and pages.last < ordered[position].prefix:
            counts.skipped.add(position)
        request = follow if rows and skips else pages.next_request(request, page)
    return now


def scan_all(prefix: str, take: Callable[[Sequence[StoredObject]], None]) -> Steps[datetime | None]:
    """Walk everything under a prefix; returns and raises what `scan` does."""
    now: datetime | None = None
    pages = Pages()
    request: Request | None = {"Prefix": prefix}
    while request is not None:
        page = yield request
        now = now or server_time(page)
        take(pages.rows(request, page))
        request = pages.next_request(request, page)
    return now


@dataclass
class Pages:
    """The pages of one walk, checked: a wrong one would give a patient another's files, or half of theirs."""

    last: str = ""  # key so far
    _tokens: set[str] = field(default_factory=set)
    _empty: int = 0

    def rows(self, request: Request, page: Page) -> list[StoredObject]:
        """
        Return the objects of a page.

        :raises UnusableListing: where one can't be read, isn't of the prefix, or doesn't follow the one before it.
        """
        prefix, last, rows = request["Prefix"], self.last, [_stored_object(row) for row in page.get("Contents") or ()]
        for row in rows:
            if not row.key.startswith(prefix):
                raise UnusableListing("a key lies outside the prefix that was requested")
            if row.key <= last:
                raise UnusableListing("it lists a key twice" if row.key == last else _UNSORTED)
            last = row.key
        self.last = last
        self._empty = 0 if rows else self._empty + 1
        if self._empty > MAX_EMPTY_PAGES:
            raise IncompleteListing(f"{self._empty} pages without a row")
        return rows

    def next_request(self, request: Request, page: Page) -> Request | None:
        """
        Return the arguments for the page after this one, or None after the last.

        :raises IncompleteListing: where the page isn't the last, and there is no way to the next.
        """
        if not is_truncated(page):
            return None
        token = page.get("NextContinuationToken")
        if not token:
            raise IncompleteListing("truncated without a continuation token")
        if token in self._tokens:
            raise IncompleteListing("a continuation token was repeated")
        self._tokens.add(token)
        return {**request, "ContinuationToken": token}


def _request(cursor: str, key_range: KeyRange, last: KeyRange) -> Request:
    """Request what follows both the cursor and the key range's start, and ends with the last of the key ranges."""
    prefix = commonprefix([key_range.prefix, last.prefix])  # noqa: RUF071 - of keys, not of folders
    start_after = max(cursor, key_range.start_after)
    is_one_key = key_range.exact and key_range == last  # and sorts first among the keys that it is a prefix of
    return {
        "Prefix": prefix,
        **({"StartAfter": start_after} if start_after >= prefix else {}),
        **({"MaxKeys": 1} if is_one_key else {}),
    }


def _hand_out(
    rows: Sequence[StoredObject],
    ordered: Sequence[KeyRange],
    position: int,
    last: str | None,
    take: Take,
    counts: Counts,
) -> int:
    """
    Give each key range its rows, and return the position of the first that may have more.

    :param last: the page's last key where others follow it, or None.
    """
    keys, done = [row.key for row in rows], 0
    while position < len(ordered):
        key_range = ordered[position]
        if last is not None and last < key_range.prefix:
            break
        begin = bisect_left(keys, key_range.prefix, done)
        end = bisect_left(keys, key_range.end, begin)
        counts.before[position] += begin - done
        counts.inside[position] += end - begin
        if end > begin:
            take(key_range.patient, rows[begin:end])
        done = end
        if last is not None and last < key_range.end and not (key_range.exact and last == key_range.prefix):
            break
        position += 1
    counts.before[position] += len(keys) - done
    return position


def is_truncated(page: Page) -> bool:
    """Return whether other pages follow this one."""
    return bool(page.get("IsTruncated", page.get("NextContinuationToken")))


def _stored_object(row: Any) -> StoredObject:
    try:
        key, modified, size = row["Key"], row["LastModified"], row["Size"]
        stored = StoredObject(key, modified, size, row.get("ETag") or "")
        if not (isinstance(key, str) and isinstance(modified, datetime) and isinstance(size, int)):
            for name, value, kind in zip(("Key", "LastModified", "Size"), stored, (str, datetime, int), strict=False):
                if not isinstance(value, kind):
                    raise UnusableListing(f"a row's {name} is a {type(value).__name__}, not a {kind.__name__}")
    except (AttributeError, KeyError, TypeError):
        missing = [name for name in ("Key", "LastModified", "Size") if not isinstance(row, Mapping) or name not in row]
        raise UnusableListing(f"a row has no {' and no '.join(missing)}") from None
    if stored.last_modified.tzinfo is None:
        raise UnusableListing("a row's LastModified has no time zone")
    return stored


def server_time(page: Page) -> datetime | None:
    """Return the storage's clock by an answer's ``Date`` header, or None where it has none that can be read."""
    text = page.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
