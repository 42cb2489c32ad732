"""A mailbox: an SMTP server that keeps every mail in memory and delivers none."""

from __future__ import annotations

import asyncio
import email
import email.policy
import logging
import socket
import threading
from dataclasses import dataclass
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope

from airflow_provider_healthex.sandbox.faults import Faults
from airflow_provider_healthex.sandbox.loop import LoopThread
from airflow_provider_healthex.sandbox.wsgi import LARGEST, listen, reachable

# It tells every command at INFO: addresses, in whatever log the sandbox's process has.
logging.getLogger("mail.log").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Mail:
    """
    A mail to one recipient.

    :param text: the body, HTML or plain, without blank lines around it.
    :param is_html: which of the two.
    """

    recipient: str
    subject: str
    text: str
    is_html: bool = False

    def to_dict(self) -> dict[str, str]:
        """Return the JSON form."""
        return {"recipient": self.recipient, "subject": self.subject, "text": self.text}


class Mailbox:
    """
    A running SMTP server, without TLS or login.

    :param host: the address to listen on.
    :param port: 0 for a free one.
    :param faults: which mails it refuses.
    """

    def __init__(self, host: str, port: int, faults: Faults) -> None:
        self._faults = faults
        self._lock = threading.Lock()
        self._mails: list[Mail] = []
        listening = listen(host, port)
        self.host = reachable(host)
        self.port: int = listening.getsockname()[1]
        self._thread = LoopThread("healthex-mail")
        self._server = self._thread.run(self._listen(listening))

    def mails(self) -> list[Mail]:
        """Return what has come, the earliest first."""
        with self._lock:
            return list(self._mails)

    def clear(self) -> None:
        """Forget all mails."""
        with self._lock:
            self._mails.clear()

    def stop(self) -> None:
        """Take nothing more and free the port."""
        self._thread.run(self._close())
        self._thread.stop()

    # --- what aiosmtpd calls

    async def handle_RCPT(
        self, server: SMTP, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take a recipient, unless it is one too many for the faults."""
        if fault := self._faults.take("mail", address):
            return f"{fault.kind} {fault.body or 'The sandbox was told to refuse this.'}"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Envelope) -> str:
        """Keep a mail."""
        assert isinstance(envelope.content, bytes)
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        body = message.get_body(("plain", "html"))
        text = "\n".join(str(body.get_content()).splitlines()).strip() if body else ""
        subject = str(message["subject"] or "")
        is_html = body is not None and body.get_content_type() == "text/html"
        with self._lock:
            self._mails += [Mail(recipient, subject, text, is_html) for recipient in envelope.rcpt_tos]
        return "250 OK"

    # --- inside

    async def _listen(self, listening: socket.socket) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(self._session, sock=listening)

    def _session(self) -> SMTP:
        # A name of its own: aiosmtpd would look this machine's up, which can take seconds.
        loop = asyncio.get_running_loop()
        return SMTP(self, data_size_limit=LARGEST, hostname="sandbox.example", ident="HealthEx sandbox", loop=loop)

    async def _close(self) -> None:
        self._server.close()
