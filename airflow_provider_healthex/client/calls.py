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

#: Characters of an unusable id that an error shows.
_LONGEST_SHOWN = 100
#: What a spreadsheet or a CSV file puts around a value, or before it to keep it text.
_QUOTES = frozenset("\"'`´“”„‟‘’‚‛«»‹›＂＇")


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


def text(name: str, value: object, *, shown: bool = False) -> str:
    """
    Return a text for a body.

    :param shown: whether an error may show the value: an id of HealthEx, and not one of the caller's own.
    :raises HealthExConfigurationError: it is not text, is empty, or has a character that comes from a spreadsheet
        rather than from whoever assigned it: one that can't be seen, a blank or a quote at an end.
    """
    if not isinstance(value, str):
        raise HealthExConfigurationError(f"{name} must be text {_not_text(value, shown)}")
    got = f" (got {repr(value)[:_LONGEST_SHOWN]})" if shown else ""
    if not value.strip():
        raise HealthExConfigurationError(f"{name} must not be empty{got}")
    flaw = _stray_character(value)
    if flaw:
        raise HealthExConfigurationError(f"{name} must not have {flaw}{got}: remove it where the value comes from")
    return value


def _not_text(value: object, shown: bool) -> str:
    kind = type(value).__name__
    if value is None:
        return "(got None): the task or parameter it comes from has no value"
    if isinstance(value, (int, float)):
        return (f"(got {kind} {value!r}): " if shown else f"(got {kind}): ") + (
            "JSON, spreadsheet readers and render_template_as_native_obj=True turn digits into a number, which loses "
            "leading zeros. Keep it text at its source; in a native template, write \"'{{ … }}'\""
        )
    return f"(got {kind})"


def _stray_character(value: str) -> str:
    """Name the first character that is invisible, or that only an end of the text makes suspicious."""
    last = len(value) - 1
    for index, character in enumerate(value):
        category, at_an_end = unicodedata.category(character), index in (0, last)
        if (
            category in ("Cc", "Cf", "Cs", "Zl", "Zp")
            or (category == "Zs" and (at_an_end or character != " "))
            or (at_an_end and character in _QUOTES)
        ):
            kind = unicodedata.name(character, "control character" if category == "Cc" else "surrogate")
            where = "at its start" if index == 0 else "at its end" if index == last else f"as character {index + 1}"
            return f"a {kind} (U+{ord(character):04X}) {where}"
    return ""


def identifier(name: str, value: object, *, shown: bool = True) -> str:
    """
    Return an id that stays within one segment of a path.

    Slashes and dot segments are refused rather than quoted: HTTP libraries resolve ``%2E%2E``, and servers and
    proxies ``%2F``.

    :param shown: as in :func:`text`; False for an external id.
    :raises HealthExConfigurationError: as :func:`text`, and for a slash, a backslash or ``..``.
    """
    id_ = text(name, value, shown=shown)
    if id_ == "." or any(part in id_ for part in ("/", "\\", "..")):
        got = f" {repr(id_)[:_LONGEST_SHOWN]}" if shown else ""
        raise HealthExConfigurationError(
            f"{name}{got} can't be an id of HealthEx: it must not have '/', '\\' or '..'; check where it comes from"
        )
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
