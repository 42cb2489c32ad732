"""Bearer tokens of two kinds: stored, and requested with an API key."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import jwt

from airflow_provider_healthex.client.calls import Call, json_body
from airflow_provider_healthex.client.models import harmless, moment, parse_json, whole_seconds
from airflow_provider_healthex.client.redaction import Secrets
from airflow_provider_healthex.client.sender import Sender, TokenSource
from airflow_provider_healthex.client.settings import ApiKey, StoredToken, is_header_safe
from airflow_provider_healthex.client.transport import Answer
from airflow_provider_healthex.exceptions import HealthExApiError, HealthExRateLimitError, HealthExTokenError

#: How far the clock of a token's issuer may be from this machine's.
LEEWAY = timedelta(seconds=60)
#: How long before it expires a requested token is replaced.
LEAD = timedelta(seconds=120)
#: docs.healthex.io; for a requested token that doesn't say when it expires.
VALIDITY = timedelta(hours=24)


def token_source(sender: Sender) -> TokenSource:
    """Return the source of tokens for a client's credentials."""
    settings, secrets = sender.settings, sender.secrets
    if isinstance(settings.credentials, ApiKey):
        return _RequestedTokens(settings.base_url, settings.credentials, sender.send, secrets)
    return _StoredTokens(settings.credentials, secrets)


def organization(token: str) -> str | None:
    """Return the ``organizationId`` claim, made harmless."""
    return harmless(claims(token).get("organizationId"))


def claims(token: str) -> Mapping[str, Any]:
    """Return a JWT's claims, unverified: HealthEx verifies them. A token that is no JWT has none."""
    try:
        return jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        return {}


def check(token: str, now: datetime) -> None:
    """
    Check a stored token before it is sent.

    :raises HealthExTokenError: it has expired, or isn't valid yet.
    """
    known = claims(token)
    expires, starts = moment(known.get("exp")), moment(known.get("nbf"))
    if expires is not None and now > expires + LEEWAY:
        raise HealthExTokenError(
            f"The stored token expired at {whole_seconds(expires)}: store a new one, "
            "or an API key and its secret, with which tokens are requested"
        )
    if starts is not None and now < starts - LEEWAY:
        raise HealthExTokenError(
            f"The stored token is not valid before {whole_seconds(starts)}: "
            "store another one, or check this machine's clock"
        )


class _StoredTokens:
    """The one token that is stored in the settings."""

    def __init__(self, credentials: StoredToken, secrets: Secrets) -> None:
        self._token = credentials.token
        secrets.announce(self._token)

    def current(self) -> str:
        check(self._token, datetime.now(timezone.utc))
        return self._token

    def discard(self, token: str) -> bool:
        return False


@dataclass(frozen=True)
class RequestedToken:
    """A token from ``/v1/auth/token``."""

    token: str = field(repr=False)
    expires_at: datetime


def requested_token(answer: object, now: datetime) -> RequestedToken | None:
    """Read an answer of ``/v1/auth/token``; None if it has no usable token."""
    fields = answer if isinstance(answer, Mapping) else {}
    token = fields.get("token")
    if not isinstance(token, str) or not is_header_safe(token):
        return None
    expires = moment(fields.get("expiration")) or moment(claims(token).get("exp"))
    return RequestedToken(token, expires or now + VALIDITY)


class _SharedToken:
    """
    One API key's current token, for all clients and threads of this process.

    One thread requests it; the others wait, and share a failure too: the endpoint is rate limited.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: RequestedToken | None = None
        self._failure: Exception | None = None
        self._failed_at = 0.0

    def get(self, request: Callable[[], RequestedToken]) -> str:
        began = time.monotonic()
        with self._lock:
            if self._current is None or datetime.now(timezone.utc) > self._current.expires_at - LEAD:
                if self._failure is not None and self._failed_at > began:
                    raise self._failure
                try:
                    self._current = request()
                except Exception as error:
                    self._failure, self._failed_at = error, time.monotonic()
                    raise
                self._failure = None
            return self._current.token

    def discard(self, token: str) -> None:
        with self._lock:
            # Another thread may have replaced it already.
            if self._current is not None and self._current.token == token:
                self._current = None


_shared_tokens: dict[tuple[str, str, str], _SharedToken] = {}
_lock = threading.Lock()


class _RequestedTokens:
    """Tokens requested with an API key; each task is a process, and requests its own."""

    def __init__(self, base_url: str, credentials: ApiKey, send: Callable[[Call], Answer], secrets: Secrets) -> None:
        self._send = send
        self._secrets = secrets
        self._call = Call(
            "POST",
            "/v1/auth/token",
            subject="Token request",
            body=json_body({"apiKey": credentials.key, "apiSecret": credentials.secret}),
            private=(credentials.secret,),
            hints=dict.fromkeys((400, 401, 403), "Check the API key and its secret."),
        )
        secrets.add(credentials.secret)
        key = (base_url, credentials.key, hashlib.sha256(credentials.secret.encode()).hexdigest())
        with _lock:
            self._shared = _shared_tokens.setdefault(key, _SharedToken())

    def current(self) -> str:
        token = self._shared.get(self._request)
        self._secrets.announce(token)
        return token

    def discard(self, token: str) -> bool:
        self._shared.discard(token)
        return True

    def _request(self) -> RequestedToken:
        try:
            answer = self._send(self._call)
        except HealthExApiError as error:
            if isinstance(error, HealthExRateLimitError) or not 400 <= error.status_code < 500:
                raise
            rejection = str(error)
        else:
            token = requested_token(parse_json(answer.body), datetime.now(timezone.utc))
            if token is not None:
                return token
            rejection = (
                f"Token request failed (HTTP {answer.status}): the answer has no token. Check the host. ({self._call})"
            )
        raise HealthExTokenError(rejection)
