"""An SFTP server on loopback that behaves as OpenSSH can't be made to: it stalls, turns away, serves no files."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import asyncssh


class OddSftp:
    """
    The server, as a context manager; it lets anybody in and has one empty folder ``d``.

    :param stalls: whether a folder's listing begins and never goes on.
    :param turns_away: the code it disconnects with before anybody is let in.
    :param serves: whether it has SFTP at all.
    :param methods: answers of its own, by the names of asyncssh.SFTPServer's methods.
    """

    def __init__(
        self, *, stalls: bool = False, turns_away: int | None = None, serves: bool = True, **methods: Any
    ) -> None:
        self._stalls, self._turns_away, self._serves, self._methods = stalls, turns_away, serves, methods
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0

    def connection(self, **changes: Any) -> str:
        """Return an Airflow connection to it."""
        host_key = " ".join(self._key.export_public_key().decode().split()[:2])
        return json.dumps(
            {
                "conn_type": "sftp",
                "host": "127.0.0.1",
                "port": self.port,
                "login": "anybody",
                "password": "anything",
                "extra": {"host_key": host_key},
                **changes,
            }
        )

    def __enter__(self) -> OddSftp:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncssh.create_server(
            self._account(), "127.0.0.1", 0, server_host_keys=[self._key], sftp_factory=self._files()
        )
        self.port = self._server.get_port()
        self._ready.set()

    async def _close(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _account(odd) -> type[asyncssh.SSHServer]:
        class Account(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                self.connection = conn

            def begin_auth(self, username: str) -> bool:
                if odd._turns_away is not None:
                    self.connection.disconnect(odd._turns_away, "The server of the test says no.")
                return False

        return Account

    def _files(odd) -> Any:
        class Files(asyncssh.SFTPServer):
            async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
                if odd._stalls:
                    await asyncio.sleep(3600)
                yield asyncssh.SFTPName(b".", attrs=asyncssh.SFTPAttrs(permissions=0o40755))

            def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
                return asyncssh.SFTPAttrs(permissions=0o40755, size=0, atime=0, mtime=0)

            lstat = stat

            async def close(self, file_obj: object) -> None:
                if odd._stalls:
                    await asyncio.sleep(3600)

        return type("OddFiles", (Files,), odd._methods) if odd._serves else None
