"""What an answer's headers say about time: when it was requested, and how long to wait."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

#: The two clocks may differ this much before anybody should look at them.
TOLERATED_SKEW = timedelta(seconds=60)
#: From here on the answer's ``Date`` is taken for wrong rather than for a clock: data would never be fresh, or always.
UNBELIEVABLE_SKEW = timedelta(days=1)

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


def request_moment(date: datetime | None, began: datetime, seconds: float) -> datetime:
    """
    Return the moment of a request, which no delivery of it can precede.

    By the service's clock where it gave one, since that is nearer to the clock of the delivery than a worker's; by
    the worker's where the two are a day or more apart.

    :param date: the answer's ``Date``, or None.
    :param began: the worker's clock just before the request.
    :param seconds: what passed from then until the answer began.
    """
    if date is None or abs(skew(date, began, seconds)) >= UNBELIEVABLE_SKEW:
        return whole(began)
    return whole(date - timedelta(seconds=seconds))


def skew(date: datetime | None, began: datetime, seconds: float) -> timedelta:
    """Return how far the service's clock is ahead of the worker's."""
    return timedelta(0) if date is None else date - began - timedelta(seconds=seconds)
