"""Redaction of HealthEx's own text: no token, signed link or control character is ever shown."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote

#: Characters of HealthEx's own text that an error shows.
LONGEST_DETAIL = 500
#: Characters that are searched for secrets: the time grows with the square of their number.
_LONGEST_PAGE = 16_384
_LONGEST_TEXT = 4_096
#: A shorter secret, such as a patient's name, is replaced only as a word: Al must not turn "also" into "***so".
_LONG_SECRET = 8

_HTML = re.compile(r"<(!doctype html|html|head|title|body|center|div|h[1-6]|p|pre)\b", re.IGNORECASE)
_UNSEEN = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")

#: Also one that was cut short.
_JWT = re.compile(r"eyJ[\w-]+(?:\.[\w-]*)*|[\w-]{16,}\.[\w-]{16,}\.[\w-]{16,}")
_BEARER = re.compile(r"\b(bearer)[\s:]+[^\s\"',;]+", re.IGNORECASE)
_EMAIL = re.compile(r"[^\s\"'<>(),;:/]+@[^\s\"'<>(),;:/]+\.\w+")
#: With or without a scheme: what follows the host may be a signature.
_URL = re.compile(
    r"\b(?P<scheme>[a-z][a-z0-9+.-]*://)(?:[^\s/?#\"'<>]*@)?(?P<host>[^\s/?#\"'<>]*)(?P<rest>[^\s\"'<>]*)"
    r"|\b(?P<bare>(?:[a-z0-9-]+\.)+[a-z]{2,}(?::\d+)?)/[^\s\"'<>]+",
    re.IGNORECASE,
)


class Secrets:
    """
    The values of one client that no text may show.

    :param on_secret: receives each token and each patient's link as soon as it is known: Airflow's ``mask_secret``.
    """

    def __init__(self, on_secret: Callable[[str], None] | None = None) -> None:
        self._on_secret = on_secret
        self._known: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known.copy())

    def add(self, secret: str) -> None:
        """Redact a value from now on."""
        self._known.add(secret)

    def announce(self, secret: str) -> None:
        """Redact a value from now on, also in Airflow's logs."""
        if secret not in self._known:
            self.add(secret)
            self.mask(secret)

    def mask(self, secret: str) -> None:
        """Redact a value in Airflow's logs alone."""
        if self._on_secret is not None:
            self._on_secret(secret)


def detail(body: bytes, secrets: Iterable[str] = ()) -> str:
    """
    Return what of an error's body may be shown.

    That is ``{"message": …}`` or ``{"error": …}``, plain text, and the text of an HTML page. Other JSON is dropped,
    even where it is cut off: it may hold a patient's data.
    """
    return clean(_words(body), secrets)


def clean(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text on one line of at most `LONGEST_DETAIL` characters, with ``***`` for everything secret."""
    text = _one_line(text)
    for secret in sorted(_spellings(secrets), key=len, reverse=True):
        if secret.casefold() in text.casefold():
            text = _pattern(secret).sub("***", text)
    text = _JWT.sub("***", text)
    text = _BEARER.sub(r"\1 ***", text)
    text = _URL.sub(_host_only, text)
    text = _EMAIL.sub("***", text)
    return text if len(text) <= LONGEST_DETAIL else text[: LONGEST_DETAIL - 1] + "…"


def _words(body: bytes) -> str:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return _text(body.decode("utf-8", "replace"))
    if not isinstance(document, dict):
        return ""
    message, error = document.get("message"), document.get("error")
    if isinstance(message, list):
        message = "; ".join(part for part in message if isinstance(part, str))
    if isinstance(message, str) and message:
        return message
    return error if isinstance(error, str) else ""


def _text(text: str) -> str:
    text = text[:_LONGEST_PAGE]
    if _HTML.search(text):
        return html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", text)))
    return "" if text.lstrip("\ufeff \t\r\n").startswith(("{", "[", "<")) else text


def _one_line(text: str) -> str:
    start = text[:_LONGEST_TEXT]
    if len(start) < len(text):
        start = start[: max(start.rfind(" "), 0)]  # half a token isn't recognized as one
    return " ".join("".join(map(_visible, start)).split())


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace() or category.startswith("Z"):
        return " "
    # Cc forges log lines, Cf reverses text, and a lone surrogate (Cs) can't be encoded.
    return "" if category.startswith("C") or character == "\ufffd" else character


def _spellings(secrets: Iterable[str]) -> set[str]:
    known = {" ".join(secret.split()) for secret in secrets} - {""}
    return known | {quote(secret, safe="") for secret in known if not secret.isalnum()}


def _pattern(secret: str) -> re.Pattern[str]:
    exact = re.escape(secret)
    return re.compile(exact if len(secret) >= _LONG_SECRET else rf"(?<!\w){exact}(?!\w)", re.IGNORECASE)


def _host_only(match: re.Match[str]) -> str:
    if match["bare"]:
        return f"{match['bare']}/***"
    return f"{match['scheme']}{match['host']}" + ("/***" if match["rest"] else "")
