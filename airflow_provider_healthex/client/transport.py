"""Sends one request, once: returns the answer, or raises whether any of the request may have been sent."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cache, partial
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from airflow_provider_healthex import __version__
from airflow_provider_healthex.client.calls import Call
from airflow_provider_healthex.client.headers import http_date, request_moment, retry_after, skew
from airflow_provider_healthex.client.http1 import Exchange, Malformed, Response
from airflow_provider_healthex.client.settings import ClientSettings
from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: Connections kept open: as many as the most concurrent requests.
POOL_SIZE = 32

#: Bytes that are sent at once: over TLS the timeout is for each write.
_PIECE = 16_384

#: The request that this thread is sending: requests and urllib3 have no way to pass it down to a connection.
_exchange: ContextVar[Exchange] = ContextVar("_exchange")


class NotSent(Exception):
    """
    Nothing of the request was sent. requests and urllib3 don't know this class, and let it pass.

    :param certificate: retrying can't help: the certificates need attention.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(_reason(cause))
        self.certificate = any(
            isinstance(each, ssl.SSLError) and "CERTIFICATE" in str(each).upper() for each in _causes(cause)
        )


class NoAnswer(Exception):
    """
    Some of the request was sent, and no readable answer began: HealthEx may or may not have acted.

    :param requested_at: by this machine's clock.
    :param timed_out: whether the wait for an answer ended it.
    :param status: the status, if one arrived before the answer turned out to be malformed.
    """

    def __init__(self, cause: Exception, requested_at: datetime) -> None:
        super().__init__(_reason(cause))
        self.requested_at = requested_at
        self.timed_out = isinstance(cause, (requests.Timeout, TimeoutError))
        self.status = next((each.status for each in _causes(cause) if isinstance(each, Malformed)), None)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """
    The status and as much of the body as arrived.

    :param requested_at: data modified since then is fresh.
    :param skew: how far HealthEx's clock is ahead of this machine's.
    :param retry_after: seconds, or None.
    :param location: as sent, or "".
    :param body: decoded; shown nowhere.
    :param flaw: why the body isn't whole, or None.
    :param timed_out: whether the body was cut off by time.
    :param too_long: whether it was cut off by the limit: retrying can't help.
    """

    status: int
    requested_at: datetime
    skew: timedelta
    retry_after: float | None
    location: str = field(repr=False)
    body: bytes = field(repr=False)
    flaw: str | None = None
    timed_out: bool = False
    too_long: bool = False


class Transport:
    """Connections to one base URL; may be used from several threads."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._session = _Session()

    def send(self, call: Call, token: str | None) -> Answer:
        """
        Send one request, once.

        :param token: the bearer token; None sends none, not even one of ``~/.netrc``.
        :raises NotSent: nothing was sent.
        :raises NoAnswer: something was sent.
        :raises HealthExConfigurationError: the base URL, the proxy or the CA bundle is unusable; nothing was sent.
        """
        settings = self._settings
        headers = {"Accept": call.accept}
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        exchange = Exchange(settings.read_timeout)
        mark = _exchange.set(exchange)
        began, start = datetime.now(timezone.utc), time.monotonic()
        try:
            response = self._session.request(
                call.method,
                settings.base_url + call.path,
                data=call.body,
                headers=headers,
                # Also without a token: given any auth, requests leaves ~/.netrc alone.
                auth=partial(_authorize, token),
                timeout=(settings.connect_timeout, settings.read_timeout),
                # With each request: only then does it precede REQUESTS_CA_BUNDLE.
                verify=settings.verify,
                stream=True,
                allow_redirects=False,
            )
            seconds = time.monotonic() - start
            with response:
                return _answer(response, call.limit, settings.read_timeout, began, seconds)
        except (NotSent, HealthExConfigurationError):
            raise
        except Exception as error:
            # Any error: once something was sent, even a ValueError of requests is not about the arguments.
            if exchange.sent:
                raise NoAnswer(error, request_moment(None, began, 0)) from None
            if not isinstance(error, ValueError):
                raise NotSent(error) from None
            kind = type(error).__name__  # InvalidURL, InvalidProxyURL and such
        finally:
            _exchange.reset(mark)
        raise HealthExConfigurationError(
            f"The base URL or the environment's proxy can't be used ({kind}): check the host and HTTPS_PROXY"
        )

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def _answer(response: requests.Response, limit: int, read_timeout: float, began: datetime, seconds: float) -> Answer:
    body, flaw, timed_out, too_long = bytearray(), None, False, False
    try:
        # read1 returns what is there, so that no more than the limit and one piece is ever in memory.
        while not too_long and (piece := response.raw.read1(65536, decode_content=True)):
            body += piece
            too_long = len(body) > limit
        if too_long:
            flaw = f"longer than {limit // 1024**2} MiB"
    except Exception as error:
        timed_out = isinstance(error, (TimeoutError, urllib3.exceptions.TimeoutError))
        flaw = f"not whole within {read_timeout:g} s" if timed_out else f"cut off ({_reason(error)})"
    headers, date = response.headers, http_date(response.headers.get("Date"))
    return Answer(
        status=response.status_code,
        requested_at=request_moment(date, began, seconds),
        skew=skew(date, began, seconds),
        retry_after=retry_after(headers.get("Retry-After"), date or datetime.now(timezone.utc)),
        location=headers.get("Location") or "",
        body=bytes(body[:limit]),
        flaw=flaw,
        timed_out=timed_out,
        too_long=too_long,
    )


def _authorize(token: str | None, request: requests.PreparedRequest) -> requests.PreparedRequest:
    if token is not None:
        request.headers["Authorization"] = f"Bearer {token}"
    return request


class _Session(requests.Session):
    def __init__(self) -> None:
        super().__init__()
        self.headers["User-Agent"] = f"airflow-provider-healthex/{__version__}"
        # One client serves many threads and patients: no request may leave a trace in the next one.
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(pool_connections=POOL_SIZE, pool_maxsize=POOL_SIZE))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return none: even with ``allow_redirects=False`` requests reads the whole body of a redirect."""


class _Adapter(HTTPAdapter):
    """Uses connections that record whether anything was sent; requests' own errors don't distinguish it."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_recording_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not known:
            _use_recording_pools(manager)
        return manager

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        try:
            super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
        except OSError:
            raise HealthExConfigurationError(
                f"The CA bundle {verify!r} can't be read: check verify, REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE"
            ) from None


def _use_recording_pools(manager: Any) -> None:
    # SOCKS managers have pools of their own: extend whichever are there.
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _recording(pool) for scheme, pool in pools.items()}


@cache
def _recording(pool_class: Any) -> Any:
    class Connection(pool_class.ConnectionCls):  # type: ignore[misc]
        """Records in the exchange that something was sent, and keeps it within its time."""

        connecting = False
        used = False
        held: list[bytes] | None = None

        def response_class(self, sock: Any, *args: Any, **kwargs: Any) -> Response:
            return Response(self, _exchange.get(), sock, *args, **kwargs)

        def connect(self) -> None:
            # A proxy's answer to CONNECT may come slowly, too.
            _exchange.get().begin(self.timeout)
            self.connecting, self.used = True, False
            try:
                super().connect()
            except Exception as error:
                raise NotSent(error) from error
            finally:
                self.connecting = False

        def request(self, *args: Any, **kwargs: Any) -> None:
            # In one go: whatever is readable before that is no answer to this request, and nothing of it is sent yet.
            self.held = []
            try:
                super().request(*args, **kwargs)
                data = b"".join(self.held)
            finally:
                self.held = None
            if self.sock is None:
                self.connect()
            elif self.used and not self.is_connected:  # an unused one may hold TLS's session tickets
                raise NotSent(Malformed("the service closed the connection, or sent an answer nobody requested"))
            exchange = _exchange.get()
            exchange.sent = self.used = True
            exchange.begin(exchange.read_timeout)
            _send_within(exchange, self.sock, super().send, data)

        def send(self, data: Any) -> None:
            if self.held is None or self.connecting:  # CONNECT itself
                super().send(data)
            else:
                self.held.append(data)

        @property
        def is_connected(self) -> bool:
            # What TLS has decrypted already is not readable on the socket.
            return super().is_connected and not (hasattr(self.sock, "pending") and self.sock.pending())

    class Pool(pool_class):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool


def _send_within(exchange: Exchange, sock: Any, send: Callable[[bytes], None], data: bytes) -> None:
    for start in range(0, len(data), _PIECE):
        sock.settimeout(exchange.remaining())
        send(data[start : start + _PIECE])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and everything it wraps; urllib3 and requests wrap in three different ways."""
    pending, seen = [error], set()
    while pending:
        cause = pending.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        # Not __context__: it may be an error the caller was handling already.
        wrapped = (*cause.args, getattr(cause, "reason", None), cause.__cause__)
        pending.extend(each for each in wrapped if isinstance(each, BaseException))


def _reason(error: Exception) -> str:
    """Return what happened in words of the operating system or our own; HTTP libraries may quote the other side."""
    causes = list(_causes(error))
    for kinds, words in _WORDS:
        if found := next((cause for cause in causes if isinstance(cause, kinds)), None):
            return words or str(found)
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {getattr(cause, 'verify_message', '') or cause.reason or 'failed'}"
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    if any(str(cause).startswith("Tunnel connection failed") for cause in causes):
        return "the proxy refused the tunnel"
    return type(causes[-1]).__name__


_WORDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (Malformed, ""),  # has words of our own
    (socket.gaierror, "the host's name could not be resolved"),
    (ConnectionRefusedError, "connection refused"),
    ((TimeoutError, urllib3.exceptions.TimeoutError), "timed out"),
    (http.client.RemoteDisconnected, "closed without an answer"),
    (http.client.IncompleteRead, "the connection closed early"),
)
