"""What an answer's headers say about time: the baseline of arrival, and how long to wait."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

#: The two clocks may differ this much before anybody should look at them.
TOLERATED_SKEW = timedelta(seconds=60)

#: Nine digits are 31 years; whatever is longer is no number of seconds.
_SECONDS = re.compile(r"[0-9]{1,9}")


def http_date(text: str | None) -> datetime | None:
    """Return the moment a ``Date``-like header names in UTC, or None where it names none."""
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            return moment.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def retry_after(text: str | None, now: datetime) -> float | None:
    """
    Return the seconds a ``Retry-After`` header asks to wait: 0 for a moment that has passed, None without any.

    :param text: the header: seconds or an HTTP date.
    :param now: by the service's clock, where it is known.
    """
    text = (text or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    moment = http_date(text)
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def whole(moment: datetime) -> datetime:
    """Round down to seconds, the resolution of S3's ``LastModified``."""
    return moment.astimezone(timezone.utc).replace(microsecond=0)


def baseline(date: datetime | None, began: datetime, seconds: float) -> datetime:
    """
    Return the moment no delivery of this request can precede.

    By the service's clock where it gave one, since that is nearer to the clock of the delivery than a worker's.

    :param date: the answer's ``Date``, or None.
    :param began: the worker's clock just before the request.
    :param seconds: what passed from then until the answer began.
    """
    if date is None:
        return whole(began)
    try:
        return whole(date - timedelta(seconds=seconds))
    except OverflowError:  # the year 1
        return whole(began)


def skew(date: datetime | None, began: datetime, seconds: float) -> timedelta:
    """Return how far the service's clock is ahead of the worker's."""
    return timedelta(0) if date is None else date - began - timedelta(seconds=seconds)
