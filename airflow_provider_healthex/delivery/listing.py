"""
One look at a bucket, without doing it: which ``ListObjectsV2`` requests to make, and what their pages decide.

A generator yields the arguments of each request and is sent its page; whoever holds a client, a worker's boto3 or
a triggerer's aiobotocore, drives it. So poke, reschedule and deferred mode run the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from airflow_provider_healthex.delivery.arrival import Arrived, Expectation, StoredObject, Tally, Waiting
from airflow_provider_healthex.delivery.template import Kind, Target

Page = Mapping[str, Any]
T = TypeVar("T")

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
        request: dict[str, Any] | None = first_request(target)
        while request is not None:
            page = yield request
            now = now or server_time(page) or clock()
            tally.add(rows(page))
            request = next_request(request, page) if target.kind is not Kind.KEY else None
    return tally.verdict(now or clock())


def first_request(target: Target) -> dict[str, Any]:
    """Return the arguments of a target's first listing; a single key sorts first among those it is a prefix of."""
    return {"Prefix": target.prefix, **({"MaxKeys": 1} if target.kind is Kind.KEY else {})}


def next_request(request: dict[str, Any], page: Page) -> dict[str, Any] | None:
    """Return the arguments for the page after this one, or None after the last."""
    token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
    return {**request, "ContinuationToken": token} if token else None


def rows(page: Page) -> Iterator[StoredObject]:
    """Return the objects of a page."""
    for row in page.get("Contents", ()):
        yield StoredObject(row["Key"], row["LastModified"], row["Size"], row.get("ETag", ""))


def server_time(page: Page) -> datetime | None:
    """Return the storage's clock by an answer's ``Date`` header, or None where it has none that can be read."""
    text = page.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
