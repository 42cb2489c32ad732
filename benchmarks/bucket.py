"""
A bucket that lists as fast as a client can read, from memory.

Moto sorts all keys of a bucket for each request: 0.4 s a page with 100,000 objects, which would hide what the
clients cost. This one knows ``ListObjectsV2`` alone, and counts.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from email.utils import format_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote
from xml.sax.saxutils import escape

from airflow_provider_healthex.sandbox.s3 import REGION
from airflow_provider_healthex.sandbox.wsgi import WsgiServer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

NAME = "bench-deliveries"
CREDENTIALS = ("bench-key", "bench-secret")

PAGE = 1000  # objects, S3's limit


class ListedBucket:
    """
    The bucket, and its server on loopback. A context manager.

    :param objects: when each key was modified.
    :param latency: seconds that each request takes besides, each in a thread of its own.
    """

    def __init__(self, objects: Mapping[str, datetime], latency: float = 0.0) -> None:
        self._keys = sorted(objects)
        self._rows = [_row(key, objects[key]) for key in self._keys]
        self._latency = latency
        self._lock = threading.Lock()
        self.requests = self.rows = 0

    def __enter__(self) -> ListedBucket:
        self._server = WsgiServer(self._answer, 0, "bench-s3")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._server.url

    def connection(self) -> dict[str, Any]:
        """Return the Airflow connection to it."""
        login, password = CREDENTIALS
        extra = {"endpoint_url": self.url, "region_name": REGION}
        return {"conn_type": "aws", "login": login, "password": password, "extra": extra}

    def modify(self, keys: Iterable[str], moment: datetime) -> None:
        """Let objects be modified."""
        for key in keys:
            self._rows[bisect_left(self._keys, key)] = _row(key, moment)

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
        if query.get("list-type") != "2":
            start_response("501 Not Implemented", [("Content-Length", "0")])
            return [b""]
        rows, text = self._list(query)
        with self._lock:
            self.requests += 1
            self.rows += rows
        time.sleep(self._latency)
        body = text.encode()
        start_response(
            "200 OK",
            [
                ("Content-Type", "application/xml"),
                ("Content-Length", str(len(body))),
                ("Date", format_datetime(datetime.now(timezone.utc), usegmt=True)),
            ],
        )
        return [body]

    def _list(self, query: Mapping[str, str]) -> tuple[int, str]:
        prefix, size = query.get("prefix", ""), min(int(query.get("max-keys", PAGE)), PAGE)
        after = query.get("continuation-token") or query.get("start-after", "")
        first = max(bisect_left(self._keys, prefix), bisect_right(self._keys, after) if after else 0)
        # No key has a character above this one.
        end = bisect_right(self._keys, prefix + "\U0010ffff")
        last = max(first, min(end, first + size))
        truncated = last < end
        token = f"<NextContinuationToken>{escape(self._keys[last - 1])}</NextContinuationToken>" if truncated else ""
        return last - first, (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{NAME}</Name><Prefix>{escape(quote(prefix))}</Prefix><MaxKeys>{size}</MaxKeys>"
            f"<EncodingType>url</EncodingType><KeyCount>{last - first}</KeyCount>"
            f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{token}{''.join(self._rows[first:last])}"
            "</ListBucketResult>"
        )


def _row(key: str, modified: datetime) -> str:
    return (
        f"<Contents><Key>{escape(quote(key))}</Key>"
        f"<LastModified>{modified:%Y-%m-%dT%H:%M:%S}.000Z</LastModified>"
        "<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>1024</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )
