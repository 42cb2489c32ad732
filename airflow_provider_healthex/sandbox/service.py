"""The parts that the routes of both APIs work with, tokens and rate limit among them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from flask import current_app

from airflow_provider_healthex.sandbox.deliveries import Deliveries
from airflow_provider_healthex.sandbox.faults import Faults
from airflow_provider_healthex.sandbox.mail import Mailbox
from airflow_provider_healthex.sandbox.state import State

EXTENSION = "healthex-sandbox"

LIFETIME = 24 * 3600  # of a token, in seconds


class Tokens:
    """JWTs like HealthEx's (ES256, 24 hours), signed with a key of this process."""

    def __init__(self, organization_id: str) -> None:
        self._organization_id = organization_id
        self._key = ec.generate_private_key(ec.SECP256R1())

    def sign(self, *, expires_in: float = LIFETIME, **claims: Any) -> str:
        """
        Return a new token.

        :param expires_in: seconds from now; negative for one that has expired.
        :param claims: in place of, or besides, the usual ones.
        """
        now = int(time.time())
        payload = {
            "organizationId": self._organization_id,
            "permissions": ["DATA_REQUESTOR", "ORG_ADMIN"],
            "type": "API_EXTERNAL_RESEARCHER",
            "iat": now,
            "exp": now + int(expires_in),
        }
        return jwt.encode(payload | claims, self._key, algorithm="ES256")

    def verify(self, token: str) -> dict[str, Any] | None:
        """Return the claims, or None for a token that another key signed or that has expired."""
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._key.public_key(), algorithms=["ES256"], options={"require": ["exp"]}
            )
        except jwt.InvalidTokenError:
            return None
        return claims


class RateLimit:
    """
    A bucket of tokens, one for each request, that refills steadily and holds one second's.

    :param per_second: requests that are answered in a second, on average.
    :param clock: seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not per_second > 0:
            raise ValueError(f"rate_limit must be above 0 requests a second (got {per_second:g})")
        self._per_second = per_second
        self._capacity = max(1.0, per_second)
        self._tokens = self._capacity
        self._clock = clock
        self._filled_at = clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a token and return 0; without one, return the seconds until there is one."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._capacity, self._tokens + (now - self._filled_at) * self._per_second)
            self._filled_at = now
            if self._tokens >= 1:
                self._tokens -= 1
                return 0
            return (1 - self._tokens) / self._per_second


@dataclass(frozen=True)
class Service:
    """
    The parts of one sandbox.

    :param latency: seconds until a request is answered.
    :param rate_limit: above it a request is refused with 429, at once; None: no limit.
    """

    state: State
    faults: Faults
    tokens: Tokens
    deliveries: Deliveries
    mailbox: Mailbox
    latency: float
    rate_limit: RateLimit | None
    credentials: tuple[str, str]
    reset: Callable[[], None]


def service() -> Service:
    """Return the sandbox that the current request is for."""
    found: Service = current_app.extensions[EXTENSION]
    return found
