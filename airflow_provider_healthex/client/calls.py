"""The parts of a call to HealthEx, and the checks on ids and texts that go into one."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import quote, urlencode

from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: Bytes of an answer that are read.
SHORT = 1024**2
#: For answers without pages: all patients of a project, or all resource types of a server.
LONG = 32 * 1024**2

#: Characters of an unusable id that an error shows.
_LONGEST_SHOWN = 100
#: Characters that a spreadsheet or a CSV file puts around a value, or before it to keep it text.
_QUOTES = frozenset("\"'`´“”„‟‘’‚‛«»‹›＂＇")


class RetryEffect(Enum):
    """The effect of a second request of the same call."""

    #: None. Retried after any 5xx and any timeout, too.
    IDEMPOTENT = "idempotent"
    #: None, as HealthEx documents. Not retried once it may have arrived: the caller decides.
    DOCUMENTED_IDEMPOTENT = "documented idempotent"
    #: It may start, and bill, a second retrieval.
    BILLED = "billed"


@dataclass
class Call:
    """
    One call, ready to be sent.

    :param template: the path as in HealthEx's documentation; errors and logs show no more of the URL.
    :param subject: the first words of an error: ``Update of patient '17d4'``.
    :param ids: values of the template's variables: HealthEx's ids, shown in errors.
    :param query: shown nowhere.
    :param body: shown nowhere: it holds patients' data and secrets.
    :param private: values of the body that must not come back in HealthEx's own text.
    :param accept: media types.
    :param limit: bytes that are read of the answer.
    :param first_words: of an error where the subject doesn't fit, by status.
    :param hints: what to do about an error, by status.
    """

    method: str
    template: str
    _: KW_ONLY
    subject: str = "The request"
    ids: Mapping[str, str] = field(default_factory=dict)
    retry_effect: RetryEffect = RetryEffect.IDEMPOTENT
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    private: tuple[str, ...] = field(default=(), repr=False)
    accept: str = "application/json"
    limit: int = SHORT
    first_words: Mapping[int, str] = field(default_factory=dict, repr=False)
    hints: Mapping[int, str] = field(default_factory=dict, repr=False)

    @property
    def path(self) -> str:
        """The path and query as they are sent."""
        path = self.template
        for name, value in self.ids.items():
            path = path.replace(f"{{{name}}}", quote(value, safe=""))
        return f"{path}?{urlencode(self.query)}" if self.query else path

    def __str__(self) -> str:
        ids = "".join(f", {name} {value!r}" for name, value in self.ids.items())
        return f"{self.method} {self.template}{ids}"


def text(name: str, value: object, *, shown: bool = False) -> str:
    """
    Return a text for a body.

    :param shown: whether an error may show the value: True for an id of HealthEx, not for one of the caller's own.
    :raises HealthExConfigurationError: it is not text, is empty, or has a character that a spreadsheet put there: an
        invisible one, or a blank or a quote at an end.
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
    if value is None:
        return "(got None): the task or parameter it comes from has no value"
    got = f"(got {type(value).__name__}" + (f" {value!r})" if shown and isinstance(value, (int, float)) else ")")
    if isinstance(value, (int, float)):
        got += (
            ": JSON, spreadsheet readers and render_template_as_native_obj=True turn digits into a number, which loses "
            "leading zeros. Put it in quotes at its source; in a native template, write \"'{{ … }}'\""
        )
    return got


def _stray_character(value: str) -> str:
    """Name the first character that is invisible, or out of place at an end of the text."""
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

    Slashes and dot segments are rejected rather than quoted: HTTP libraries resolve ``%2E%2E``, and servers and
    proxies ``%2F``.

    :param shown: as in `text`; False for an external id.
    :raises HealthExConfigurationError: as `text`, and for a slash, a backslash or ``..``.
    """
    id_ = text(name, value, shown=shown)
    if id_ == "." or any(part in id_ for part in ("/", "\\", "..")):
        got = f" (got {repr(id_)[:_LONGEST_SHOWN]})" if shown else ""
        raise HealthExConfigurationError(f"{name} must not have '/', '\\' or '..'{got}: check where it comes from")
    return id_


def flag(name: str, value: object) -> dict[str, bool]:
    """Return an optional boolean of a body; None leaves it out."""
    if value is None:
        return {}
    if not isinstance(value, bool):
        raise HealthExConfigurationError(f"{name} must be True, False or None (got {value!r})")
    return {name: value}


def json_body(document: Mapping[str, Any]) -> bytes:
    """Return a JSON body; an error doesn't show what has no JSON form."""
    try:
        return json.dumps(document, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        kind = type(error).__name__
    raise HealthExConfigurationError(
        f"the body has no JSON form ({kind}): use text, finite numbers, booleans, lists and mappings; dates as ISO text"
    )
