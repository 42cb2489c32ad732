"""What a client must be told: where HealthEx is, how to sign in, and how patient to be."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: What fits into an Authorization header as it is.
_HEADER_SAFE = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class StoredToken:
    """
    A bearer token somebody else obtained; surrounding whitespace, as pasting leaves it, is dropped.

    :param token: a JWT, or any other bearer token HealthEx gave.
    """

    token: str = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", _secret(self.token, "The token"))
        if not is_header_safe(self.token):
            raise HealthExConfigurationError(
                "The token has characters that no token has (spaces, line breaks or non-ASCII): store it again"
            )


@dataclass(frozen=True)
class ApiKey:
    """
    An API key and its secret, for which ``/v1/auth/token`` gives a token.

    :param key: HealthEx's name of the key.
    :param secret: the secret that belongs to it.
    """

    key: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", _secret(self.key, "The API key"))
        object.__setattr__(self, "secret", _secret(self.secret, "The API secret"))


@dataclass(frozen=True)
class ClientSettings:
    """
    How one client talks to one HealthEx organisation.

    :param base_url: e.g. ``https://api.healthex.io``; may have a path prefix. Whether plain ``http`` is
        acceptable is the caller's decision.
    :param credentials: a stored token, or a key to mint one with.
    :param org_id: replaces the token's ``organizationId`` claim.
    :param connect_timeout: seconds for the connection, the proxy's tunnel and the TLS handshake.
    :param read_timeout: seconds for the whole exchange, from the first byte sent to the last one received.
    :param requests_per_second: limit shared by every client of this process with the same ``base_url`` and
        ``credentials``; None: no limit.
    :param verify: True (with the environment's CA bundle, if any), a CA bundle's path, or False.
    :raises HealthExConfigurationError: a value can't be used.
    """

    base_url: str
    credentials: StoredToken | ApiKey
    org_id: str | None = None
    connect_timeout: float = 10
    read_timeout: float = 120
    requests_per_second: float | None = None
    verify: bool | str = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", _base_url(self.base_url))
        if self.org_id is not None and not (isinstance(self.org_id, str) and self.org_id):
            raise HealthExConfigurationError(f"org_id must be text or left out (got {self.org_id!r})")
        for name in ("connect_timeout", "read_timeout", "requests_per_second"):
            value = getattr(self, name)
            if not (value is None and name == "requests_per_second"):
                _check_positive(name, value)
        if isinstance(self.verify, str) and not os.path.exists(self.verify):
            raise HealthExConfigurationError(
                f"verify must be true, false or the path of a CA bundle (no file {self.verify!r})"
            )


def is_header_safe(token: str) -> bool:
    """Return whether a token can be sent; HTTP libraries repeat one that can't in their error's text."""
    return _HEADER_SAFE.fullmatch(token) is not None


def _secret(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise HealthExConfigurationError(f"{name} is empty: fill it in")
    return value.strip()


def _base_url(value: object) -> str:
    try:
        parts = urlsplit(value if isinstance(value, str) else "")
        usable = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and "@" not in parts.netloc
            and not parts.query
            and not parts.fragment
            and not re.search(r"[\s\\\x00-\x1f\x7f]", str(value))
            and not {".", ".."} & set(parts.path.split("/"))
        )
    except ValueError:  # a port or an IPv6 address that is none
        usable = False
    if not usable:
        # The value isn't repeated: a login and password may stand in it.
        raise HealthExConfigurationError(
            "The base URL must look like https://api.healthex.io, without login, query and fragment"
        )
    return str(value).rstrip("/")


def _check_positive(name: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type,operator]
        raise HealthExConfigurationError(f"{name} must be a number above 0 (got {value!r})")
