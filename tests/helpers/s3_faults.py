"""An S3 server on loopback with scripted answers: throttled, broken, refused, cut off."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

NOW = "now"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; ``date`` is its header, ``NOW``, or None for an answer without one."""

    body: str = ""
    status: int = 200
    date: str | None = NOW
    claimed: int = 0  # bytes announced beyond the body's, which never come
    broken_header: bytes = b""

    def send(self, handler: BaseHTTPRequestHandler, closing: threading.Event) -> None:
        body = b"" if handler.command == "HEAD" else self.body.encode()
        handler.send_response_only(self.status)
        if self.date is not None:
            moment = datetime.now(timezone.utc)
            handler.send_header("Date", format_datetime(moment, usegmt=True) if self.date == NOW else self.date)
        handler.send_header("Content-Type", "application/xml")
        handler.send_header("Content-Length", str(len(body) + self.claimed))
        handler.send_header("Connection", "close")
        handler.flush_headers()
        handler.wfile.write(self.broken_header)
        handler.end_headers()
        handler.wfile.write(body)


@dataclass(frozen=True)
class Reset:
    """The connection is reset when the request has been read."""

    def send(self, handler: BaseHTTPRequestHandler, closing: threading.Event) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()


@dataclass(frozen=True)
class Silence:
    """No answer ever comes."""

    def send(self, handler: BaseHTTPRequestHandler, closing: threading.Event) -> None:
        closing.wait(60)


@dataclass(frozen=True)
class Stuck:
    """An answer in chunks that never ends: after ``raw``, nothing comes, or with ``drips`` one byte now and then."""

    raw: bytes
    drips: bool = False

    def send(self, handler: BaseHTTPRequestHandler, closing: threading.Event) -> None:
        handler.send_response_only(200)
        handler.send_header("Content-Type", "application/xml")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(self.raw)
            for _ in range(1_200):
                if closing.wait(0.05):
                    break
                if self.drips:
                    handler.wfile.write(b"1\r\n \r\n")


Behaviour = Answer | Reset | Silence | Stuck


def listing(
    *keys: str,
    modified: datetime | None = None,
    size: int = 1,
    token: str | None = None,
    date: str | None = NOW,
    truncated: bool | None = None,
) -> Answer:
    """Return a page of a listing; with a ``token``, or ``truncated``, it isn't the last."""
    truncated = token is not None if truncated is None else truncated
    stamp = (modified or datetime.now(timezone.utc)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    rows = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp}</LastModified><ETag>&quot;e&quot;</ETag>"
        f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for key in keys
    )
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return Answer(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><Prefix></Prefix>'
        f"<KeyCount>{len(keys)}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>{'true' if truncated else 'false'}"
        f"</IsTruncated>{more}{rows}</ListBucketResult>",
        date=date,
    )


def refusal(status: int, code: str, message: str = "The server of the test says no.") -> Answer:
    """Return one of S3's errors."""
    return Answer(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
        "<RequestId>R1</RequestId><HostId>H1</HostId></Error>",
        status,
    )


EMPTY = listing()
SLOW_DOWN = refusal(503, "SlowDown", "Please reduce your request rate.")
INTERNAL_ERROR = refusal(500, "InternalError")
SERVICE_UNAVAILABLE = refusal(503, "ServiceUnavailable")
BAD_GATEWAY = Answer("<html>502 Bad Gateway</html>", 502)
TOO_MANY_REQUESTS = Answer("", 429)
REQUEST_TIMEOUT = refusal(400, "RequestTimeout")
EXPIRED_TOKEN = refusal(400, "ExpiredToken")
RESET = Reset()
SILENCE = Silence()
CONFLICT = refusal(409, "OperationAborted")
CLOCK_SKEW = refusal(403, "RequestTimeTooSkewed")
TOKEN_REFRESH = refusal(400, "TokenRefreshRequired")
UNKNOWN_THROTTLING = refusal(400, "SomeNewThrottlingThing")
HALF_A_CHUNK = Stuck(b"ff\r\n<?xml")
WRONG_CHUNKS = Stuck(b"5\r\n<?xml version='1.0'?>\r\nzz\r\n")
DRIPPING = Stuck(b"5\r\n<?xml\r\n", drips=True)
GARBAGE = Answer("this is no XML <<<")
CUT_XML = Answer(EMPTY.body[:-30])
CUT_OFF = Answer(EMPTY.body[:-30], claimed=30)
BROKEN_HEADER = Answer(EMPTY.body, broken_header=b"this is no header\r\n")
ERROR_WITH_200 = Answer(refusal(200, "InternalError").body)
ROLE_DENIED = Answer(
    "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>No.</Message></Error></ErrorResponse>",
    403,
)
STS_THROTTLED = Answer(ROLE_DENIED.body.replace("AccessDenied", "Throttling"), 400)
ACCESS_DENIED = refusal(403, "AccessDenied")
INVALID_ACCESS_KEY = refusal(403, "InvalidAccessKeyId")
WRONG_SIGNATURE = refusal(403, "SignatureDoesNotMatch")
WRONG_REGION = refusal(301, "PermanentRedirect")
MALFORMED_AUTHORIZATION = refusal(400, "AuthorizationHeaderMalformed")
NO_SUCH_BUCKET = refusal(404, "NoSuchBucket")


@dataclass(frozen=True)
class Request:
    """One request that arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str] = field(repr=False)


class FaultyS3:
    """
    The server, as a context manager.

    Requests are answered by what was scripted, in turn, then with an empty listing. botocore sends a ``HEAD`` for a
    bucket's region on its own: it is answered with a 400, and neither takes a scripted answer nor is it recorded.
    """

    def __init__(self, certificate: tuple[Any, Any] | None = None) -> None:
        self.requests: list[Request] = []
        self._script: deque[Behaviour] = deque()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def endpoint_url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def script(self, *behaviours: Behaviour | Iterable[Behaviour]) -> None:
        """Answer the next requests so."""
        for behaviour in behaviours:
            self._script.extend([behaviour] if isinstance(behaviour, Behaviour) else behaviour)

    def clear(self) -> None:
        """Forget the rest of the script."""
        self._script.clear()

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _next(self, handler: BaseHTTPRequestHandler) -> Behaviour:
        if handler.command == "HEAD":
            return Answer(status=400)
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.requests.append(Request(handler.command, url.path, query, dict(handler.headers.items())))
        return self._script.popleft() if self._script else EMPTY

    def _handler(faulty) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            close_connection = True

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                faulty._next(self).send(self, faulty._closing)
                self.close_connection = True

            do_GET = do_HEAD = do_PUT = do_POST = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def closed_port_url() -> str:
    """Return an URL of loopback where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
