"""The settings of a client, checked once: where HealthEx is, how to sign in, and how long to wait."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from airflow_provider_healthex.client.calls import text
from airflow_provider_healthex.exceptions import HealthExConfigurationError

log = logging.getLogger(__name__)

#: Text that fits into an Authorization header as it is.
_HEADER_SAFE = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class StoredToken:
    """
    A bearer token that was obtained elsewhere; whitespace around it is dropped.

    :param token: a JWT, or any other bearer token of HealthEx.
    """

    token: str = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", _secret(self.token, "the token"))
        if not is_header_safe(self.token):
            raise HealthExConfigurationError(
                "the token has characters that no token has (spaces, line breaks or non-ASCII): store it again"
            )


@dataclass(frozen=True)
class ApiKey:
    """
    An API key and its secret, with which tokens are requested from ``/v1/auth/token``.

    :param key: HealthEx's name of the key.
    """

    key: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", _secret(self.key, "the API key"))
        object.__setattr__(self, "secret", _secret(self.secret, "the API secret"))


@dataclass(frozen=True)
class ClientSettings:
    """
    How one client talks to one HealthEx organization.

    :param base_url: e.g. ``https://api.healthex.io``; may have a path prefix.
    :param org_id: replaces the token's ``organizationId`` claim.
    :param connect_timeout: seconds for the connection, the proxy's tunnel and the TLS handshake.
    :param read_timeout: seconds for the whole exchange, from the first byte sent to the last one received.
    :param requests_per_second: shared by every client of this process with the same ``base_url`` and
        ``credentials``; None: no limit.
    :param verify: True (with the environment's CA bundle, if any), the path of a CA bundle, or, for loopback hosts
        only, False.
    :param allow_http: permits ``http://`` to other hosts than loopback; each use is logged as a warning.
    :raises HealthExConfigurationError: a value is unusable.
    """

    base_url: str
    credentials: StoredToken | ApiKey
    org_id: str | None = None
    connect_timeout: float = 10
    read_timeout: float = 120
    requests_per_second: float | None = None
    verify: bool | str = True
    allow_http: bool = False

    def __post_init__(self) -> None:
        _check_base_url(self.base_url)
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        if self.org_id is not None:
            text("org_id", self.org_id, shown=True)
        for name in ("connect_timeout", "read_timeout", "requests_per_second"):
            value = getattr(self, name)
            if value is not None or name != "requests_per_second":
                _check_positive(name, value)
        if not isinstance(self.verify, bool) and not (isinstance(self.verify, str) and os.path.exists(self.verify)):
            raise HealthExConfigurationError(
                f"verify must be true, false or the path of a CA bundle on this machine (got {self.verify!r}, which is "
                "no file)"
            )
        if not isinstance(self.allow_http, bool):
            raise HealthExConfigurationError(f"allow_http must be true or false (got {self.allow_http!r})")
        if not _is_loopback(urlsplit(self.base_url).hostname or ""):
            self._check_encryption()

    def _check_encryption(self) -> None:
        if self.verify is False:
            raise HealthExConfigurationError(
                "verify is false, which is accepted for loopback hosts only: anyone on the way could read the token. "
                "Give the path of your CA bundle instead"
            )
        if not self.base_url.startswith("http:"):
            return
        if not self.allow_http:
            raise HealthExConfigurationError(
                f"the token would be sent unencrypted to {self.base_url!r}: use https://. For a test system, set "
                "allow_http to true"
            )
        log.warning("The token is sent unencrypted to %s, as allow_http permits", self.base_url)


def is_header_safe(token: str) -> bool:
    """Return whether a token can be sent; HTTP libraries repeat one that can't in their error's text."""
    return _HEADER_SAFE.fullmatch(token) is not None


def _secret(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise HealthExConfigurationError(f"{name} is empty: fill it in")
    return value.strip()


def _check_base_url(value: object) -> None:
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
    except ValueError:  # the port is no number, or the IPv6 address is none
        usable = False
    if not usable:
        # The value isn't shown: a login and password may stand in it. Raised here for the same reason.
        raise HealthExConfigurationError(
            "the base URL must look like https://api.healthex.io, without login, query and fragment"
        )


def _check_positive(name: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type,operator]
        raise HealthExConfigurationError(f"{name} must be a number above 0 (got {value!r})")


def _is_loopback(hostname: str) -> bool:
    try:
        return hostname == "localhost" or ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False
