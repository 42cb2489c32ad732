"""
One look at a bucket, without doing it: which ``ListObjectsV2`` requests to make, and what their pages decide.

A generator yields the arguments of each request and is sent its page; whoever holds a client, a worker's boto3 or
a triggerer's aiobotocore, drives it. So poke, reschedule and deferred mode run the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from airflow_provider_healthex.delivery.arrival import Arrived, Expectation, StoredObject, Tally, Waiting
from airflow_provider_healthex.delivery.template import Kind, Target
from airflow_provider_healthex.exceptions import HealthExConfigurationError

Page = Mapping[str, Any]
Rows = Sequence[dict[str, Any]]  # as boto3 gives them: a hundred thousand are too many to wrap each
T = TypeVar("T")

#: So many pages without a row may follow each other.
MAX_EMPTY_PAGES = 100

#: Yields the arguments of a ``list_objects_v2`` (without the bucket), is sent its answer, returns a verdict.
Look = Generator[dict[str, Any], Page, T]


def utc_now() -> datetime:
    """Return the local clock's time, where a storage doesn't tell its own."""
    return datetime.now(timezone.utc)


def look(expectation: Expectation, clock: Callable[[], datetime] = utc_now) -> Look[Arrived | Waiting]:
    """
    Look once at every target of an expectation.

    :param expectation: what counts.
    :param clock: asked only where the first answer has no ``Date`` header.
    """
    tally = Tally(expectation)
    now: datetime | None = None
    for target in expectation.targets:
        walk = Walk()
        request: dict[str, Any] | None = first_request(target)
        while request is not None:
            page = yield request
            now = now or server_time(page) or clock()
            tally.add(map(stored_object, walk.rows(request, page)))
            request = walk.next_request(request, page) if target.kind is not Kind.KEY else None
    return tally.verdict(now or clock())


def first_request(target: Target) -> dict[str, Any]:
    """Return the arguments of a target's first listing; a single key sorts first among those it is a prefix of."""
    return {"Prefix": target.prefix, **({"MaxKeys": 1} if target.kind is Kind.KEY else {})}


def stored_object(row: Mapping[str, Any]) -> StoredObject:
    """Return a row as an object."""
    return StoredObject(row["Key"], row["LastModified"], row["Size"], row.get("ETag", ""))


class UnusableListing(HealthExConfigurationError):
    """A storage lists so that arrival can't be decided, and will again; the text names no key."""


class IncompleteListing(Exception):
    """A listing broke off without saying so: nothing may be decided on what it showed. Another may be whole."""


@dataclass
class Walk:
    """
    The pages of one walk in key order, checked: a wrong one would give a patient another's files, or half of theirs.

    :param last: the last key so far.
    """

    last: str = ""
    _tokens: set[str] = field(default_factory=set)
    _empty: int = 0

    def rows(self, request: Mapping[str, Any], page: Page) -> Rows:
        """
        Return the rows of a page.

        :raises UnusableListing: where one can't be read, isn't of the prefix, or doesn't follow the row before it.
        """
        rows, prefix, last = page.get("Contents") or (), request["Prefix"], self.last
        for row in rows:
            key, modified, size = _fields(row)
            _check_field("Key", key, str)
            _check_field("LastModified", modified, datetime)
            _check_field("Size", size, int)
            if modified.tzinfo is None:
                raise UnusableListing("a row's LastModified has no time zone")
            if not key.startswith(prefix):
                raise UnusableListing("a key lies outside the prefix that was requested")
            if key <= last:
                raise UnusableListing(_TWICE if key == last else _UNSORTED)
            last = key
        self.last = last
        self._empty = 0 if rows else self._empty + 1
        if self._empty > MAX_EMPTY_PAGES:
            raise IncompleteListing(f"{self._empty} pages without a row")
        return rows

    def next_request(self, request: Mapping[str, Any], page: Page) -> dict[str, Any] | None:
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


_UNSORTED = (
    "its keys are not in order: use a general purpose bucket; directory buckets (S3 Express) and some other stores "
    "list in no order"
)
_TWICE = "it lists a key twice"


def is_truncated(page: Page) -> bool:
    """Whether other pages follow this one."""
    return bool(page.get("IsTruncated", page.get("NextContinuationToken")))


def _fields(row: Any) -> tuple[Any, Any, Any]:
    if not isinstance(row, Mapping):
        raise UnusableListing(f"a row is a {type(row).__name__}")
    return row.get("Key"), row.get("LastModified"), row.get("Size")


def _check_field(name: str, value: Any, kind: type) -> None:
    if value is None:
        raise UnusableListing(f"a row has no {name}")
    if not isinstance(value, kind):
        raise UnusableListing(f"a row's {name} is a {type(value).__name__}, not a {kind.__name__}")


def server_time(page: Page) -> datetime | None:
    """Return the storage's clock by an answer's ``Date`` header, or None where it has none that can be read."""
    text = page.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
