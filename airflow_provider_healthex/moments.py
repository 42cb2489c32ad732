"""Moments as this package compares and stores them: in UTC and whole seconds, the resolution of S3's LastModified."""

from __future__ import annotations

from datetime import datetime, timezone


def whole_seconds(moment: datetime) -> datetime:
    """Return a moment in UTC, rounded down to the second."""
    return moment.astimezone(timezone.utc).replace(microsecond=0)


def to_text(moment: datetime) -> str:
    """Return a moment as ISO 8601 text, the form of XCom, triggers and stores."""
    return whole_seconds(moment).isoformat()


def utc_now() -> datetime:
    """Return this machine's time."""
    return datetime.now(timezone.utc)
