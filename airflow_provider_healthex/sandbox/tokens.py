"""The sandbox's tokens: JWTs as HealthEx's look (ES256, 24 hours), signed with a key of this process."""

from __future__ import annotations

import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

LIFETIME = 24 * 3600  # seconds
PERMISSIONS = ("DATA_REQUESTOR", "ORG_ADMIN")


class Tokens:
    """Signs tokens for an organisation and checks them."""

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
            "permissions": list(PERMISSIONS),
            "type": "API_EXTERNAL_RESEARCHER",
            "iat": now,
            "exp": now + int(expires_in),
        }
        return jwt.encode(payload | claims, self._key, algorithm="ES256")

    def verify(self, token: str) -> dict[str, Any] | None:
        """Return the claims, or None for a token that is not ours or has expired."""
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._key.public_key(), algorithms=["ES256"], options={"require": ["exp"]}
            )
        except jwt.InvalidTokenError:
            return None
        return claims
