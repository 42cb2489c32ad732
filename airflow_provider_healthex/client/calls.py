"""What a call to HealthEx is: method, path with the ids in it, body, and how it may be repeated."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import quote, urlencode

from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: Bytes of an answer that are read.
SHORT = 1024**2
#: For answers that list every patient of a project, without pages, or every resource type of a server.
LONG = 32 * 1024**2


class Repeat(Enum):
    """What repeating a call does."""

    #: Nothing: repeated by itself after any 5xx and any timeout as well.
    FREE = "free"
    #: Nothing, by HealthEx's pages: the caller may, it isn't done by itself.
    SAFE = "safe"
    #: It may start, and bill, a second retrieval.
    BILLED = "billed"


@dataclass(frozen=True)
class Call:
    """
    One call, ready to be sent.

    :param method: ``GET`` or ``POST``.
    :param template: the path as the API's pages write it; all of it that errors and logs show.
    :param subject: the call as an error's first words: ``Update of patient '17d4'``.
    :param ids: opaque ids of HealthEx, shown in errors: what the template's variables stand for.
    :param repeat: what repeating it does.
    :param query: shown nowhere.
    :param body: shown nowhere: patients' data and secrets.
    :param private: values of the body that the service's own text mustn't repeat either.
    :param accept: media types.
    :param limit: bytes that are read of the answer.
    :param verdicts: an error's first words where the subject doesn't fit, by status.
    :param hint: what to do about an error, by status.
    """

    method: str
    template: str
    subject: str = "The request"
    ids: Mapping[str, str] = field(default_factory=dict, hash=False)
    repeat: Repeat = Repeat.FREE
    query: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    body: bytes | None = field(default=None, repr=False)
    private: tuple[str, ...] = field(default=(), repr=False)
    accept: str = "application/json"
    limit: int = SHORT
    verdicts: Mapping[int, str] = field(default_factory=dict, repr=False, hash=False)
    hint: Mapping[int, str] = field(default_factory=dict, repr=False, hash=False)

    @property
    def path(self) -> str:
        """The path and query as they go over the wire."""
        path = self.template
        for name, value in self.ids.items():
            path = path.replace(f"{{{name}}}", quote(value, safe=""))
        return f"{path}?{urlencode(self.query)}" if self.query else path

    def __str__(self) -> str:
        ids = ", ".join(f"{name} {value!r}" for name, value in self.ids.items())
        return f"{self.method} {self.template}" + (f", {ids}" if ids else "")


def text(name: str, value: object) -> str:
    """
    Return a text for a body.

    :raises HealthExConfigurationError: it is no text, empty, or has control characters; it isn't repeated.
    """
    if not isinstance(value, str):
        raise HealthExConfigurationError(f"{name} must be text, not {type(value).__name__}")
    if not value.strip():
        raise HealthExConfigurationError(f"{name} is empty")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
        raise HealthExConfigurationError(f"{name} has control characters: check where it comes from")
    return value


def identifier(name: str, value: object) -> str:
    """
    Return an id of HealthEx's that stays within one segment of a path.

    Slashes and dot segments are refused rather than quoted: HTTP libraries resolve ``%2E%2E``, and servers and
    proxies ``%2F``.

    :raises HealthExConfigurationError: it is no text, empty, or has a slash, a backslash, ``..`` or control characters.
    """
    id_ = text(name, value)
    if id_ == "." or any(part in id_ for part in ("/", "\\", "..")):
        raise HealthExConfigurationError(f"{name} {id_!r} can't be an id of HealthEx: check where it comes from")
    return id_


def flag(name: str, value: object) -> dict[str, bool]:
    """Return an optional boolean of a body, left out where it is None."""
    if value is None:
        return {}
    if not isinstance(value, bool):
        raise HealthExConfigurationError(f"{name} must be true, false or left out, not {value!r}")
    return {name: value}


def json_body(document: Mapping[str, Any]) -> bytes:
    """Return a JSON body; what has no JSON form is refused without being repeated."""
    try:
        return json.dumps(document, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        kind = type(error).__name__
    raise HealthExConfigurationError(
        f"the body has no JSON form ({kind}): use text, finite numbers, booleans, lists and mappings; dates as ISO text"
    )
