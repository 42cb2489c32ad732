"""A mailbox: an SMTP server that keeps every mail in memory and delivers none."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import logging
import threading
from dataclasses import asdict, dataclass
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope

from airflow_provider_healthex.sandbox.faults import Faults
from airflow_provider_healthex.sandbox.wsgi import listen, reachable

# It tells every command at INFO: addresses, in whatever log the sandbox's process has.
logging.getLogger("mail.log").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Mail:
    """
    A mail to one recipient.

    :param text: the body, HTML or plain, without blank lines around it.
    """

    recipient: str
    subject: str
    text: str

    def to_dict(self) -> dict[str, str]:
        """Return the JSON form."""
        return asdict(self)


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
        self._loop = asyncio.new_event_loop()
        try:
            self._listening = listen(host, port)
        except OSError:
            self._loop.close()
            raise
        self.host = reachable(host)
        self.port: int = self._listening.getsockname()[1]
        self._serving = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="healthex-mail", daemon=True)
        self._thread.start()
        self._serving.wait()  # a stop before that would find half a server

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
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

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
        with self._lock:
            self._mails += [Mail(recipient, str(message["subject"] or ""), text) for recipient in envelope.rcpt_tos]
        return "250 OK"

    # --- inside

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self._loop.create_server(self._session, sock=self._listening))
        self._serving.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._end_sessions())
        self._loop.close()

    def _session(self) -> SMTP:
        # A name of its own: aiosmtpd would look this machine's up, which can take seconds.
        return SMTP(self, hostname="sandbox.example", ident="HealthEx sandbox", loop=self._loop)

    async def _end_sessions(self) -> None:
        sessions = asyncio.all_tasks() - {asyncio.current_task()}
        for each in sessions:
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*sessions, return_exceptions=True)
        await asyncio.sleep(0)  # lets the sockets close
