"""The bearer token: is it usable now, whose is it, and when must it be minted again."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import jwt

from airflow_provider_healthex.client.models import harmless, moment, whole_seconds
from airflow_provider_healthex.client.settings import ApiKey, is_header_safe
from airflow_provider_healthex.exceptions import HealthExTokenError

#: How far the clock of whoever issued a token may be from ours.
LEEWAY = timedelta(seconds=60)
#: How long before its end a minted token is replaced.
LEAD = timedelta(seconds=120)
#: docs.healthex.io; for a minted token that doesn't say when it ends.
VALIDITY = timedelta(hours=24)


def claims(token: str) -> Mapping[str, Any]:
    """Return a JWT's claims, unverified: that is the service's job. A token that is no JWT has none."""
    try:
        return jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        return {}


def organization(token: str) -> str | None:
    """Return the ``organizationId`` claim, made harmless."""
    return harmless(claims(token).get("organizationId"))


def check(token: str, now: datetime) -> None:
    """
    Refuse a stored token the service would refuse.

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


@dataclass(frozen=True)
class Minted:
    """
    A token that was minted.

    :param token: the bearer token.
    :param expires_at: UTC.
    """

    token: str = field(repr=False)
    expires_at: datetime


def minted(answer: object, now: datetime) -> Minted | None:
    """Read what ``/v1/auth/token`` answered; None where no usable token is in it."""
    if not isinstance(answer, Mapping):
        return None
    token = answer.get("token")
    if not isinstance(token, str) or not is_header_safe(token):
        return None
    expires = moment(answer.get("expiration")) or moment(claims(token).get("exp"))
    return Minted(token, expires or now + VALIDITY)


class Mint:
    """One API key's current token, shared by all clients and threads of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: Minted | None = None
        self._failure: Exception | None = None
        self._failed_at = 0.0

    def token(self, mint: Callable[[], Minted]) -> str:
        """
        Return a token that is valid for a while, minting one where needed.

        One thread mints, the others wait for it and share what comes of it, a refusal too: the endpoint is rate
        limited.
        """
        asked_at = time.monotonic()
        with self._lock:
            if self._current is None or datetime.now(timezone.utc) > self._current.expires_at - LEAD:
                if self._failure is not None and self._failed_at > asked_at:
                    raise self._failure
                self._current = self._mint(mint)
            return self._current.token

    def discard(self, token: str) -> None:
        """Forget a token the service refused, unless another thread has replaced it already."""
        with self._lock:
            if self._current is not None and self._current.token == token:
                self._current = None

    def _mint(self, mint: Callable[[], Minted]) -> Minted:
        try:
            fresh = mint()
        except Exception as error:
            self._failure, self._failed_at = error, time.monotonic()
            raise
        self._failure = None
        return fresh


_mints: dict[tuple[str, str, str], Mint] = {}
_lock = threading.Lock()


def mint_for(base_url: str, credentials: ApiKey) -> Mint:
    """Return the one mint this process has for an API key: each task is a process, so each task mints once."""
    key = (base_url, credentials.key, hashlib.sha256(credentials.secret.encode()).hexdigest())
    with _lock:
        return _mints.setdefault(key, Mint())
