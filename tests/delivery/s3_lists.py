"""S3's ListObjectsV2 in memory: key order, 1,000 rows a page; and every request it was asked."""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime, timezone
from email.utils import format_datetime
from typing import Any

PAGE = 1_000


class MemoryS3:
    """
    A bucket of keys with their times.

    :param objects: times by key, or ``(time, size)``.
    :param now: what the ``Date`` header says.
    """

    def __init__(self, objects: dict[str, Any], now: datetime, page: int = PAGE) -> None:
        self.objects, self.now, self.page = objects, now, page
        self.requests: list[dict[str, Any]] = []

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        prefix = request["Prefix"]
        after = request.get("ContinuationToken") or request.get("StartAfter", "")
        # By bytes, as S3 does: the tests don't take Python's order of strings for granted.
        keys = self._sorted()
        start = bisect_right(keys, after.encode("utf-8"), key=lambda key: key.encode("utf-8"))
        found = []
        for key in keys[start:]:
            if key.startswith(prefix):
                found.append(key)
                if len(found) > self.page:
                    break
            elif key.encode() > prefix.encode():
                break
        shown, more = found[: self.page], len(found) > self.page
        rows = [self._row(key) for key in shown]
        date = format_datetime(self.now.astimezone(timezone.utc), usegmt=True)
        return {
            "ResponseMetadata": {"HTTPHeaders": {"date": date}},
            "IsTruncated": more,
            "Contents": rows,
            **({"NextContinuationToken": shown[-1]} if more else {}),
        }

    def _sorted(self) -> list[str]:
        known = getattr(self, "_order", None)
        if known is None or len(known) != len(self.objects):
            self._order = sorted(self.objects, key=lambda key: key.encode("utf-8"))
        return self._order

    def _row(self, key: str) -> dict[str, Any]:
        value = self.objects[key]
        modified, size = value if isinstance(value, tuple) else (value, 1)
        return {"Key": key, "LastModified": modified, "Size": size, "ETag": '"e"'}

    def drive(self, steps: Any) -> Any:
        """Answer a look's requests, and return what it ends with."""
        try:
            request = next(steps)
            while True:
                request = steps.send(self.answer(request))
        except StopIteration as end:
            return end.value
