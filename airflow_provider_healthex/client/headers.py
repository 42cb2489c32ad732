"""The headers ``Date`` and ``Retry-After``: when a request was made by HealthEx's clock, and how long to wait."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

#: A larger difference between HealthEx's clock and this machine's is logged.
TOLERATED_SKEW = timedelta(seconds=60)
#: From here on the ``Date`` is taken to be wrong: with it, data would never be fresh, or always.
IMPLAUSIBLE_SKEW = timedelta(days=1)

#: Nine digits are 31 years; anything longer is no number of seconds.
_SECONDS = re.compile(r"[0-9]{1,9}")


def http_date(text: str | None) -> datetime | None:
    """Return the moment of a header such as ``Date`` in UTC, or None if it isn't one."""
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
        return moment.astimezone(timezone.utc) if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def retry_after(text: str | None, now: datetime) -> float | None:
    """
    Return the seconds of a ``Retry-After`` header, at least 0; None if it is missing or unreadable.

    :param text: seconds or an HTTP date.
    :param now: by HealthEx's clock, if it is known.
    """
    text = (text or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    moment = http_date(text)
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def request_moment(date: datetime | None, began: datetime, seconds: float) -> datetime:
    """
    Return when a request was made, in UTC and whole seconds, the resolution of S3's ``LastModified``.

    By HealthEx's clock, which is nearer to the clock of its deliveries than this machine's; by this machine's if the
    answer has no plausible ``Date``.

    :param date: the answer's ``Date``, or None.
    :param began: this machine's clock just before the request.
    :param seconds: from then until the answer began.
    """
    if date is not None and abs(skew(date, began, seconds)) < IMPLAUSIBLE_SKEW:
        began = date - timedelta(seconds=seconds)
    return began.astimezone(timezone.utc).replace(microsecond=0)


def skew(date: datetime | None, began: datetime, seconds: float) -> timedelta:
    """Return how far HealthEx's clock is ahead of this machine's."""
    return timedelta(0) if date is None else date - began - timedelta(seconds=seconds)
