"""A mailbox: an SMTP server that keeps every mail in memory and delivers none."""

from __future__ import annotations

import asyncio
import email
import email.policy
import logging
import threading
from dataclasses import dataclass
from socket import socket
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope

from airflow_provider_healthex.sandbox.faults import Faults
from airflow_provider_healthex.sandbox.loop import LoopThread
from airflow_provider_healthex.sandbox.wsgi import HOST, LARGEST, listen

# At INFO it logs every command, and with it every address.
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

    :param port: 0 for a free one.
    :param faults: decide which mails it refuses.
    """

    def __init__(self, loop: LoopThread, port: int, faults: Faults) -> None:
        self._loop = loop
        self._faults = faults
        self._lock = threading.Lock()
        self._mails: list[Mail] = []
        listening = listen(port)
        self._port: int = listening.getsockname()[1]
        self._server = loop.run(self._listen(listening))

    def mails(self) -> list[Mail]:
        """Return the received mails, the earliest first."""
        with self._lock:
            return list(self._mails)

    def clear(self) -> None:
        """Forget all mails."""
        with self._lock:
            self._mails.clear()

    def stop(self) -> None:
        """Take nothing more and free the port. Open sessions end with the loop."""
        self._loop.run(self._close())

    def airflow_connection(self) -> dict[str, Any]:
        """Return an Airflow connection to it, of type ``smtp``."""
        return {
            "conn_type": "smtp",
            "host": HOST,
            "port": self._port,
            "extra": {
                "disable_tls": True,
                "disable_ssl": True,
                "from_email": "study@sandbox.example",
                "retry_limit": 0,  # SmtpHook would send a refused mail 5 times at once, and hide the fault
            },
        }

    # --- called by aiosmtpd

    async def handle_RCPT(
        self, server: SMTP, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take a recipient, unless a fault is set for it."""
        if fault := self._faults.take("mail", address):
            return f"{fault.kind} {fault.body or 'Refused by a fault of the sandbox'}"
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

    async def _listen(self, listening: socket) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(self._session, sock=listening)

    def _session(self) -> SMTP:
        # A name of its own: aiosmtpd would look this machine's up, which can take seconds.
        loop = asyncio.get_running_loop()
        return SMTP(self, data_size_limit=LARGEST, hostname="sandbox.example", ident="HealthEx sandbox", loop=loop)

    async def _close(self) -> None:
        self._server.close()
