"""
Reads an HTTP/1.1 answer strictly, within one deadline, and without leaving anything for the next request.

`http.client` takes most 1xx answers as final, accepts a head that ends early, conflicting lengths and negative chunk
sizes, and times each read alone. On a connection that many patients share, each of these can give one patient the
answer of another, or delay a task without an end.
"""

from __future__ import annotations

import http.client
import io
import re
import time
from typing import Any

#: Interim answers (1xx) and headers that an answer may have.
MOST_INTERIM_ANSWERS = 100
MOST_HEADERS = 100
LONGEST_LINE = 65_536

_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) +([1-9][0-9]{2})(?: (.*))?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_LENGTH = re.compile(r"[0-9]{1,15}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


class Malformed(http.client.HTTPException):
    """
    An answer that isn't HTTP: its end is unknown.

    :param reason: in our own words; it quotes nothing of the answer.
    :param status: the status, if a status line arrived.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class Exchange:
    """
    One request and its answer.

    :param read_timeout: seconds from the first byte sent to the last one received.
    """

    def __init__(self, read_timeout: float) -> None:
        self.read_timeout = read_timeout
        #: Whether any of the request may have been sent.
        self.sent = False
        self._deadline = 0.0

    def begin(self, seconds: float) -> None:
        """Set the deadline of the phase that begins now."""
        self._deadline = time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds until the deadline, more than 0."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        return remaining


class _TimedReader(io.RawIOBase):
    """A socket's bytes, until the deadline."""

    def __init__(self, raw: io.RawIOBase, sock: Any, exchange: Exchange) -> None:
        self._raw, self._sock, self._exchange = raw, sock, exchange
        #: No more is read from the socket, so that the buffer can be inspected without waiting.
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.ended:
            return None
        self._sock.settimeout(self._exchange.remaining())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class Response(http.client.HTTPResponse):
    """
    An answer, read strictly.

    :param connection: is closed if its next answer might not belong to the next request.
    """

    def __init__(
        self, connection: http.client.HTTPConnection, exchange: Exchange, sock: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(sock, *args, **kwargs)
        self._connection = connection
        self._reader = _TimedReader(self.fp.detach(), sock, exchange)
        self.fp = io.BufferedReader(self._reader)

    def begin(self) -> None:
        """Read the head of the final answer."""
        if self.headers is not None:
            return
        minor = self._read_final_status()
        self.version = 10 if minor == 0 else 11
        self.headers, folded = self._read_headers()
        self.msg = self.headers
        codings = _listed(self.headers, "Transfer-Encoding")
        lengths = set(_listed(self.headers, "Content-Length"))
        if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
            raise Malformed("it has no usable Content-Length", self.status)
        self.chunked = [coding.lower() for coding in codings] == ["chunked"]
        self.chunk_left = None
        # Another coding than chunked lasts until the connection is closed (RFC 9112, 6.3).
        self.length = int(lengths.pop()) if lengths and not codings else None
        doubtful = folded or (bool(codings) and (not self.chunked or minor == 0 or bool(lengths)))
        if self.status in (204, 304) or self._method == "HEAD":
            self.length = 0
        endless = not self.chunked and self.length is None
        self.will_close = bool(self._check_close()) or doubtful or endless

    def _read_final_status(self) -> int:
        for _ in range(MOST_INTERIM_ANSWERS + 1):
            minor = self._read_status_line()
            if self.status >= 200:
                return minor
            if self.status == 101:
                raise Malformed("it switched the protocol")
            self._read_headers()
        raise Malformed(f"more than {MOST_INTERIM_ANSWERS} interim answers came")

    def _read_status_line(self) -> int:
        line = self.fp.readline(LONGEST_LINE)
        if not line:
            raise http.client.RemoteDisconnected("closed")
        match = _STATUS_LINE.fullmatch(line.rstrip(b"\r\n"))
        if match is None or not line.endswith(b"\n"):
            raise Malformed("it does not begin with a status line of HTTP/1")
        self.status = self.code = int(match[2])
        self.reason = (match[3] or b"").decode("latin-1").strip()
        return int(match[1])

    def _read_headers(self) -> tuple[http.client.HTTPMessage, bool]:
        """Return the headers, and whether one was folded over several lines."""
        found: list[tuple[str, str]] = []
        folded = False
        while line := self._read_line():
            if line[:1] in (b" ", b"\t") and found:
                name, value = found.pop()
                found.append((name, f"{value} {line.strip().decode('latin-1')}"))
                folded = True
                continue
            match = _HEADER.fullmatch(line)
            if match is None:
                raise Malformed("its headers can't be read", self.status)
            found.append((match[1].decode("ascii"), match[2].decode("latin-1")))
            if len(found) > MOST_HEADERS:
                raise Malformed(f"it has more than {MOST_HEADERS} headers", self.status)
        headers = http.client.HTTPMessage()
        for name, value in found:
            headers[name] = value
        return headers, folded

    def _read_line(self) -> bytes:
        line = self.fp.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise Malformed("a line is too long" if len(line) == LONGEST_LINE else "it ended early", self.status)
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if b"\r" in line or b"\0" in line:
            raise Malformed("a line has a stray CR or NUL", self.status)
        return line

    def _get_chunk_left(self) -> int | None:
        # Called by http.client for every piece of a chunked body.
        if not self.chunk_left:
            if self.chunk_left is not None and self._read_line():
                raise Malformed("a chunk is longer than its size", self.status)
            match = _CHUNK_SIZE.fullmatch(self._read_line())
            if match is None:
                raise Malformed("a chunk has no usable size", self.status)
            self.chunk_left = int(match[1], 16) or None
            if self.chunk_left is None:
                self._skip_trailers()
                self._close_conn()
        return self.chunk_left

    def _skip_trailers(self) -> None:
        # The body is whole, even if the server closes instead of ending the trailers.
        while self.fp.readline(LONGEST_LINE) not in (b"\r\n", b"\n", b""):
            pass

    def _close_conn(self) -> None:
        # Called by http.client at the end of the body, or when reading is abandoned.
        self._reader.ended = True
        surplus = self.fp.peek(1)
        super()._close_conn()  # type: ignore[misc]
        if surplus:
            self._connection.close()


def _listed(headers: http.client.HTTPMessage, name: str) -> list[str]:
    return [each.strip() for value in headers.get_all(name, []) for each in value.split(",")]
