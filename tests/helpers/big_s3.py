"""An S3 server on loopback that lists a hundred thousand made-up objects as fast as it can, and does nothing else."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from airflow_provider_healthex.delivery import StoredObject

PAGE = 1000


class BigS3:
    """
    The server, as a context manager.

    :param rows: what every bucket holds.
    """

    def __init__(self, rows: Iterable[StoredObject]) -> None:
        self._rows = sorted(rows)
        self._keys = [row.key for row in self._rows]
        self.listings = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> BigS3:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def page(self, prefix: str, delimiter: str, token: str) -> str:
        self.listings += 1
        at = max(bisect_left(self._keys, prefix), bisect_right(self._keys, token) if token else 0)
        shown: list[str] = []
        last = ""
        while at < len(self._keys) and self._keys[at].startswith(prefix) and len(shown) < PAGE:
            row = self._rows[at]
            folder, slash, _ = row.key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if slash:
                name = prefix + folder + slash
                shown.append(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>")
                last = name + "\U0010ffff"
                at = bisect_right(self._keys, last)
            else:
                stamp = row.last_modified.strftime("%Y-%m-%dT%H:%M:%S.000Z")
                shown.append(
                    f"<Contents><Key>{escape(row.key)}</Key><LastModified>{stamp}</LastModified>"
                    f"<Size>{row.size}</Size></Contents>"
                )
                last = row.key
                at += 1
        more = at < len(self._keys) and self._keys[at].startswith(prefix)
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>b</Name><IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(shown)}</ListBucketResult>"
        )

    def _handler(big) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                names = ("prefix", "delimiter", "continuation-token")
                body = big.page(*(query.get(name, [""])[0] for name in names)).encode()
                self.send_response_only(200)
                self.send_header("Date", formatdate(usegmt=True))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.send_response_only(200)
                self.send_header("x-amz-bucket-region", "us-east-1")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
