"""One request over the wire: what came back, or whether anything can have gone out."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from airflow_provider_healthex.client.clocks import http_date
from airflow_provider_healthex.client.settings import ClientSettings
from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: Connections kept open: as many as a large cohort has threads.
POOL_SIZE = 32

#: What can end an answer halfway; urllib3's errors reach us unwrapped, since the body is read by ourselves.
_CUT_OFF = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


@dataclass(frozen=True)
class NotSent:
    """
    No connection was made, so that the service knows nothing of the request.

    :param reason: never holds anything of the request.
    :param certificate: trying again won't help, somebody must look at the certificates.
    """

    reason: str
    certificate: bool = False


@dataclass(frozen=True)
class Lost:
    """
    A connection was made, and no answer began: the service may or may not have acted.

    :param began: the worker's clock just before the request.
    :param timed_out: it was silence that ended it.
    """

    reason: str
    began: datetime
    timed_out: bool = False


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

    def send(self, call: Call, token: str | None) -> Answer | Lost | NotSent:
        """
        Send one request, once.

        :param token: the bearer token; None sends none, not even one of ``~/.netrc``.
        :raises HealthExConfigurationError: the URL, the proxy or the CA bundle can't be used.
        """
        settings = self._settings
        headers = {"Accept": call.accept}
        if call.body is not None:
            headers["Content-Type"] = "application/json"
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
        except _Unsent as unsent:
            return NotSent(_reason(unsent.cause), certificate=_is_about_certificates(unsent.cause))
        except requests.RequestException as error:
            if isinstance(error, ValueError):  # InvalidURL, InvalidProxyURL and such: nothing was sent
                kind = type(error).__name__
            else:
                return Lost(_reason(error), began, timed_out=isinstance(error, requests.Timeout))
        except _CUT_OFF as error:
            return Lost(_reason(error), began)
        else:
            seconds = time.monotonic() - start
            with response:
                return _answer(response, call.limit, settings.read_timeout, began, seconds)
        raise HealthExConfigurationError(
            f"the base URL or the environment's proxy can't be used ({kind}): check the host and HTTPS_PROXY"
        )

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def _answer(response: requests.Response, limit: int, patience: float, began: datetime, seconds: float) -> Answer:
    body, flaw, timed_out, too_long = bytearray(), None, False, False
    deadline = time.monotonic() + patience
    # read1 gives what is there, so that a body that drips can't outlast the deadline; urllib3 < 2.1 lacks it.
    read = getattr(response.raw, "read1", response.raw.read)
    try:
        while flaw is None and (piece := read(65536, decode_content=True)):
            body += piece
            too_long = len(body) > limit
            timed_out = not too_long and time.monotonic() > deadline
            if too_long:
                flaw = f"longer than {limit // 1024**2} MiB"
            elif timed_out:
                flaw = f"not whole within {patience:g} s"
    except _CUT_OFF as error:
        timed_out = isinstance(error, (TimeoutError, urllib3.exceptions.TimeoutError))
        flaw = f"cut off ({_reason(error)})"
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
                f"the CA bundle {verify!r} can't be read: check verify, REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE"
            ) from None


def _tell_connecting(manager: Any) -> None:
    # Also SOCKS managers have their own pools: build on whichever are there.
    manager.pool_classes_by_scheme = {scheme: _telling(pool) for scheme, pool in manager.pool_classes_by_scheme.items()}


@cache
def _telling(pool_class: Any) -> Any:
    class Connection(pool_class.ConnectionCls):  # type: ignore[misc]
        def connect(self) -> None:
            with _connecting():
                super().connect()

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
        if any(isinstance(cause, kinds) for cause in causes):
            return words
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
    (socket.gaierror, "the host's name could not be resolved"),
    (ConnectionRefusedError, "connection refused"),
    ((TimeoutError, urllib3.exceptions.TimeoutError), "timed out"),
    (http.client.RemoteDisconnected, "closed without an answer"),
    (http.client.IncompleteRead, "the connection closed early"),
)
