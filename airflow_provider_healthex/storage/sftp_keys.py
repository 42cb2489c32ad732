"""Keys in an SFTP connection's Extra that were pasted in a form that can't be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import asyncssh

from airflow_provider_healthex.exceptions import HealthExConfigurationError

_KEY_TYPES = ("ssh-", "ecdsa-", "sk-")


def check_keys(sftp_conn_id: str, extra: Mapping[str, Any]) -> None:
    """Refuse keys that were pasted in another form, which would look like an attack, or like nothing at all."""
    host_key, private_key = extra.get("host_key"), extra.get("private_key")
    if isinstance(private_key, str) and "-----END" in private_key and "\n" not in private_key.strip():
        raise HealthExConfigurationError(
            f"private_key in the Extra of sftp_conn_id {sftp_conn_id!r} has lost its line ends: write each as \\n in "
            "the Extra's JSON."
        )
    if host_key is None:
        return
    words = str(host_key).split()
    kind, key = (words[0], words[1]) if len(words) > 1 else ("ssh-rsa", "".join(words))
    if any(word.startswith(_KEY_TYPES) for word in words[1:]):
        problem = "is a line of ssh-keyscan or known_hosts: leave out the host before the key"
    elif not _is_public_key(f"{kind} {key}"):
        problem = "can't be read: give the key's type and the key"
    else:
        return
    raise HealthExConfigurationError(
        f"host_key in the Extra of sftp_conn_id {sftp_conn_id!r} {problem}, as in 'ssh-ed25519 AAAA…'."
    )


def _is_public_key(text: str) -> bool:
    try:
        asyncssh.import_public_key(text)
    except asyncssh.KeyImportError:
        return False
    return True
