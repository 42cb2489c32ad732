"""What every request to the sandbox's HTTP servers passes first: no other site's page, and no endless body."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d+)?", re.IGNORECASE)


class Guard:
    """
    Refuses what a web page could make a browser on this machine send, and bodies that are too large.

    A page of another site can send requests to 127.0.0.1, and by DNS rebinding read the answers under a name of its
    own. Its requests carry its ``Origin``, or that name as ``Host``.

    :param app: what answers all other requests.
    :param address: that the server listens on. A network address is reached by any address and by a name without a
        dot, such as a container's; a loopback address by loopback addresses and ``localhost`` alone.
    :param largest: body, in bytes.
    """

    def __init__(self, app: WSGIApplication, address: str, largest: int) -> None:
        self._app = app
        self._is_local = ip_address(address).is_loopback
        self._largest = largest

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, or refuse it."""
        refusal = self._refuse_site(environ) or self._refuse_body(environ)
        if refusal is not None:
            return refusal(environ, start_response)

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            # Moto lets every site read what it answers.
            kept = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
            return start_response(status, kept, *error)

        return self._app(environ, start)

    def _refuse_site(self, environ: WSGIEnvironment) -> Response | None:
        host = environ.get("HTTP_HOST", "")
        if not self._is_ours(host):
            return _refusal(403, f"Host must be an address of this machine (got {host!r})")
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin.lower() != f"http://{host}".lower():
            return _refusal(403, f"The pages of other sites may not call the sandbox (got Origin {origin!r})")
        return None

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]").lower().removesuffix(".")
        if name == "localhost" or name.endswith(".localhost"):  # a bucket's name may stand before it
            return True
        try:
            return ip_address(name).is_loopback or not self._is_local
        except ValueError:
            return not self._is_local and "." not in name

    def _refuse_body(self, environ: WSGIEnvironment) -> Response | None:
        if environ.get("wsgi.input_terminated"):
            return self._refuse_chunks(environ)
        length = environ.get("CONTENT_LENGTH") or "0"
        if not (length.isascii() and length.isdigit()):
            return _refusal(400, f"Content-Length must be a number (got {length!r})")
        return self._too_large() if int(length) > self._largest else None

    def _refuse_chunks(self, environ: WSGIEnvironment) -> Response | None:
        """Read a chunked body, and hand it on as one whose length is known."""
        try:
            body = io.BufferedReader(environ["wsgi.input"]).read(self._largest + 1)
        except (OSError, ValueError):
            return _refusal(400, "The chunks of the body can't be read")
        if len(body) > self._largest:
            return self._too_large()
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        for name in ("wsgi.input_terminated", "HTTP_TRANSFER_ENCODING"):
            environ.pop(name, None)
        return None

    def _too_large(self) -> Response:
        return _refusal(413, f"The body must be at most {self._largest:,} bytes")


def _refusal(status: int, reason: str) -> Response:
    headers = {"X-Content-Type-Options": "nosniff"}
    return Response(reason, status=status, headers=headers, content_type="text/plain; charset=utf-8")
