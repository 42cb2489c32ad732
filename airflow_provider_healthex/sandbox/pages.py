"""Pages for a browser: the mailbox, and a patient's page. No script, and nothing from other servers."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from html.parser import HTMLParser

from flask import Response

from airflow_provider_healthex.sandbox.mail import Mail

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2733; background: #f3f5f8; margin: 0; }
main { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 0.2rem 0 0.6rem; overflow-wrap: anywhere; }
.note { color: #566273; margin: 0.2rem 0 1.5rem; }
article { background: #fff; border: 1px solid #d9dfe7; border-radius: 8px; padding: 0.8rem 1.1rem 1rem; }
article + article { margin-top: 1rem; }
.to { color: #566273; font-size: 0.9rem; overflow-wrap: anywhere; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
a { color: #0b5cad; }
button { font: inherit; padding: 0.5rem 1rem; }
""".strip()

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: Of every answer of the sandbox's API, unless a page says otherwise.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

_URL = re.compile(r"https?://[^\s<>\"']*[^\s<>\"'.,;:!?)\]]", re.IGNORECASE)

#: Elements of a mail that begin a line, and those that are not shown.
_LINES = frozenset(("p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "blockquote"))
_HIDDEN = frozenset(("script", "style", "title", "template"))


def page(title: str, body: str, *, form: bool = False) -> Response:
    """
    Return an HTML page.

    :param title: as text.
    :param body: as HTML, with all foreign text escaped.
    :param form: whether it has a form, which goes to the sandbox itself.
    """
    title = escape(title)
    response = Response(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n"
        f"<body><main><h1>{title}</h1>\n{body}\n</main></body></html>\n".encode("utf-8", "replace"),
        content_type="text/html; charset=utf-8",
    )
    response.headers.update(HEADERS)
    action = "'self'" if form else "'none'"
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
        f"base-uri 'none'; form-action {action}; frame-ancestors 'none'"
    )
    if form:  # with no-referrer a browser sends "Origin: null", as other sites' pages do
        response.headers["Referrer-Policy"] = "same-origin"
    return response


def mailbox(mails: Sequence[Mail]) -> Response:
    """Return the page of the received mails, the newest first."""
    count = f"{len(mails)} mail{'' if len(mails) == 1 else 's'}, the newest first." if mails else "No mail yet."
    note = "The sandbox delivers no mail: all of it is here. Reload the page for newer mails."
    articles = (
        f'<article><div class="to">To {escape(mail.recipient)}</div><h2>{escape(mail.subject) or "(no subject)"}</h2>'
        f'<div class="text">{_readable(mail)}</div></article>'
        for mail in reversed(mails)
    )
    return page("Mailbox of the HealthEx sandbox", f'<p class="note">{count} {note}</p>\n' + "\n".join(articles))


def _readable(mail: Mail) -> str:
    if not mail.is_html:
        return _linked(mail.text)
    reader = _TextAndLinks()
    reader.feed(mail.text)
    reader.close()
    return reader.markup.strip()


def _linked(text: str) -> str:
    """Escape a text, and make the addresses in it links."""
    parts = []
    end = 0
    for found in _URL.finditer(text):
        parts += [escape(text[end : found.start()]), _link(found[0], escape(found[0]))]
        end = found.end()
    return "".join(parts) + escape(text[end:])


def _link(url: str, label: str) -> str:
    return f'<a href="{escape(url)}" rel="noopener noreferrer">{label}</a>'


class _TextAndLinks(HTMLParser):
    """Keeps the text and the links of an HTML mail alone: any program that reaches the mailbox can write one."""

    def __init__(self) -> None:
        super().__init__()
        self.markup = ""
        self._hidden = 0
        self._url: str | None = None
        self._label = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            self._hidden += 1
        elif tag in _LINES:
            self._new_line()
            self.markup += "• " if tag == "li" else ""
        elif tag == "a":
            url = (dict(attrs).get("href") or "").strip()
            self._url = url if _URL.fullmatch(url) else None

    def handle_endtag(self, tag: str) -> None:
        if tag in _HIDDEN:
            self._hidden = max(0, self._hidden - 1)
        elif tag == "a" and self._url is not None:
            self.markup += _link(self._url, escape(self._label.strip() or self._url))
            self._url, self._label = None, ""
        elif tag in _LINES:
            self._new_line()

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        words = re.sub(r"\s+", " ", data)
        if self._url is not None:
            self._label += words
        else:
            self.markup += _linked(words if self.markup and not self.markup.endswith(("\n", " ")) else words.lstrip())

    def close(self) -> None:
        super().close()
        self.handle_endtag("a")  # a link without an end

    def _new_line(self) -> None:
        if self.markup and not self.markup.endswith("\n"):
            self.markup += "\n"
