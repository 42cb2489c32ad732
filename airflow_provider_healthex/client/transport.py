"""One request over the wire: the answer, or whether anything of the request can have gone out."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from airflow_provider_healthex import __version__
from airflow_provider_healthex.client.calls import Call
from airflow_provider_healthex.client.headers import http_date
from airflow_provider_healthex.client.http1 import Exchange, Malformed, Response
from airflow_provider_healthex.client.settings import ClientSettings
from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: Connections kept open: as many as a large cohort has threads.
POOL_SIZE = 32

#: Bytes that are sent at once: over TLS the time-out is for each write.
_PIECE = 16_384

#: What this thread is sending: requests and urllib3 hand nothing of ours down to a connection.
_exchange: ContextVar[Exchange] = ContextVar("_exchange")


@dataclass(frozen=True)
class NotSent:
    """
    Nothing of the request went out, so that the service knows nothing of it.

    :param reason: never holds anything of the request.
    :param certificate: retrying won't help, somebody must look at the certificates.
    """

    reason: str
    certificate: bool = False


@dataclass(frozen=True)
class NoAnswer:
    """
    Something of the request went out, and no answer that can be read began: the service may or may not have acted.

    :param began: the worker's clock just before the request.
    :param timed_out: it was silence that ended it.
    :param status: the status, where one arrived before the answer turned out to be malformed.
    """

    reason: str
    began: datetime
    timed_out: bool = False
    status: int | None = None


@dataclass(frozen=True)
class Answer:
    """
    The status and as much of the body as arrived.

    :param body: decoded bytes; shown nowhere.
    :param began: the worker's clock just before the request.
    :param seconds: from then until the answer's head was there.
    :param flaw: why the body isn't whole, or None.
    :param timed_out: it was time that cut the body.
    :param too_long: it was the limit that cut the body; repeating it won't help.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    began: datetime
    seconds: float
    flaw: str | None = None
    timed_out: bool = False
    too_long: bool = False

    @property
    def date(self) -> datetime | None:
        """The service's clock when it answered, if it said."""
        return http_date(self.headers.get("Date"))


class Transport:
    """
    Connections to one base URL; may be used from several threads.

    :param settings: of the client it belongs to.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._session = _Session()

    def send(self, call: Call, token: str | None) -> Answer | NoAnswer | NotSent:
        """
        Send one request, once.

        :param token: the bearer token; None sends none, not even one of ``~/.netrc``.
        :raises HealthExConfigurationError: the URL, the proxy or the CA bundle can't be used, and nothing was sent.
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
                auth=_Authorization(token),
                timeout=(settings.connect_timeout, settings.read_timeout),
                # With each request: only so it precedes REQUESTS_CA_BUNDLE.
                verify=settings.verify,
                stream=True,
                allow_redirects=False,
            )
            seconds = time.monotonic() - start
            with response:
                return _answer(response, call.limit, settings.read_timeout, began, seconds)
        except HealthExConfigurationError:
            raise
        except Exception as error:
            # Whatever it is: once something was sent, requests' own ValueErrors say nothing about the arguments.
            failed: NotSent | NoAnswer | None = _failed(error, began, sent=exchange.sent)
            kind = type(error).__name__
        finally:
            _exchange.reset(mark)
        if failed is None:
            raise HealthExConfigurationError(
                f"The base URL or the environment's proxy can't be used ({kind}): check the host and HTTPS_PROXY"
            )
        return failed

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def _failed(error: Exception, began: datetime, *, sent: bool) -> NotSent | NoAnswer | None:
    """Return what an error means for the request; None where its URL or proxy can't be used at all."""
    if sent:
        status = next((cause.status for cause in _causes(error) if isinstance(cause, Malformed)), None)
        timed_out = isinstance(error, (requests.Timeout, TimeoutError))
        return NoAnswer(_reason(error), began, timed_out=timed_out, status=status)
    if isinstance(error, _Unsent):
        return NotSent(_reason(error.cause), certificate=_is_about_certificates(error.cause))
    # InvalidURL, InvalidProxyURL and such.
    return None if isinstance(error, ValueError) else NotSent(_reason(error))


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
    return Answer(
        status=response.status_code,
        headers=response.headers,
        body=bytes(body[:limit]),
        began=began,
        seconds=seconds,
        flaw=flaw,
        timed_out=timed_out,
        too_long=too_long,
    )


class _Authorization(AuthBase):
    """The only thing that writes the header: with an ``auth`` of its own, requests leaves ``~/.netrc`` alone."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
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
        """Find none: even with ``allow_redirects=False`` requests reads the whole body of a redirect."""


class _Unsent(Exception):
    """Wraps what prevented a connection; unknown to requests and urllib3, which let it pass as it is."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(type(cause).__name__)
        self.cause = cause


class _Adapter(HTTPAdapter):
    """
    Tells errors of connecting from those of sending.

    From requests' own errors that can't be told: a reset during the TLS handshake looks like one after sending.
    """

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _tell_connecting(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not known:
            _tell_connecting(manager)
        return manager

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        try:
            super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
        except OSError:
            raise HealthExConfigurationError(
                f"The CA bundle {verify!r} can't be read: check verify, REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE"
            ) from None


def _tell_connecting(manager: Any) -> None:
    # Also SOCKS managers have their own pools: build on whichever are there.
    manager.pool_classes_by_scheme = {scheme: _telling(pool) for scheme, pool in manager.pool_classes_by_scheme.items()}


@cache
def _telling(pool_class: Any) -> Any:
    class Connection(pool_class.ConnectionCls):  # type: ignore[misc]
        """Marks the exchange as sent with its first byte, and keeps it within its time."""

        connecting = False
        used = False
        held: list[bytes] | None = None

        def response_class(self, sock: Any, *args: Any, **kwargs: Any) -> Response:
            return Response(self, _exchange.get(), sock, *args, **kwargs)

        def connect(self) -> None:
            # A proxy's answer to CONNECT may drip, too.
            _exchange.get().begin(self.timeout)
            self.connecting, self.used = True, False
            try:
                with _connecting():
                    super().connect()
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
            elif self.used and not self.is_connected:  # a new one may hold TLS's session tickets
                raise _Unsent(Malformed("the service closed the connection, or sent what nobody requested"))
            exchange = _exchange.get()
            exchange.sent = self.used = True
            exchange.begin(exchange.read_timeout)
            for start in range(0, len(data), _PIECE):
                self.sock.settimeout(exchange.remaining())
                super().send(data[start : start + _PIECE])

        def send(self, data: Any) -> None:
            if self.held is None or self.connecting:  # CONNECT itself
                super().send(data)
            else:
                self.held.append(data)

        @property
        def is_connected(self) -> bool:
            # What TLS has decrypted already doesn't show on the socket.
            pending = getattr(self.sock, "pending", None)
            return super().is_connected and not (pending and pending())

    class Pool(pool_class):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool


@contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _Unsent(error) from error


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


def _is_about_certificates(error: Exception) -> bool:
    return any(isinstance(cause, ssl.SSLError) and "CERTIFICATE" in str(cause).upper() for cause in _causes(error))


def _reason(error: Exception) -> str:
    """
    Return what happened in words of the operating system or our own.

    Texts of the HTTP libraries are left out: they may repeat what the other side sent.
    """
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
    for cause in causes:
        if str(cause).startswith("Tunnel connection failed"):
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
