"""SFTP as the storage that deliveries go to: any server, or asyncssh's in this process. Needs the extra ``sftp``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import posixpath
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from airflow_provider_healthex.sandbox.deliveries import StoredFile
from airflow_provider_healthex.sandbox.loop import LoopThread
from airflow_provider_healthex.sandbox.wsgi import HOST, listen

try:
    import asyncssh
except ModuleNotFoundError as error:
    needs = f"Delivery by SFTP needs {error.name}: pip install 'airflow-provider-healthex[sandbox,sftp]'"
    raise ModuleNotFoundError(needs, name=error.name) from None

# At INFO it logs each connection and each file. A level that is set already stays.
if logging.getLogger("asyncssh").level == logging.NOTSET:
    logging.getLogger("asyncssh").setLevel(logging.WARNING)

T = TypeVar("T")

#: Of the sandbox's own server. The password is a new one at each start.
USERNAME = "sandbox-sftp-user"

#: The ending of a file's name while it is written.
PARTIAL = ".filepart"

UPLOAD_TIMEOUT = 30  # seconds for one file, connecting included


@dataclass(frozen=True)
class SftpServer:
    """
    An SFTP server and an account on it.

    :param password: None: the private key alone.
    :param private_key: in OpenSSH's or a PEM form.
    :param host_key: the server's public key, as ``ssh-ed25519 AAAA…``; another server is refused.
    """

    host: str
    port: int
    username: str
    host_key: str
    password: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"


class SftpDestination:
    """
    An account on an SFTP server that deliveries are written to, through one connection.

    A file is written under another name and then renamed over the old one, so no reader sees half of it. Relative
    paths begin in the account's folder.

    :param server: another server; None: one of its own.
    :param port: of the own one, 0 for a free one.
    """

    def __init__(self, loop: LoopThread, server: SftpServer | None, port: int) -> None:
        self._loop = loop
        self._own: _OwnServer | None = None
        if server is None:
            self._own = _OwnServer(loop, port)
            server = self._own.server
        self.server = server
        self._files: set[str] = set()
        self._folders: list[str] = []  # a parent before what is in it
        self._connection: asyncssh.SSHClientConnection | None = None
        self._client: asyncssh.SFTPClient
        self._turn = asyncio.Lock()  # one file after the other

    def airflow_connection(self) -> dict[str, Any]:
        """Return an Airflow connection to the server, of type ``sftp``."""
        server = self.server
        connection: dict[str, Any] = {
            "conn_type": "sftp",
            "host": server.host,
            "port": server.port,
            "login": server.username,
            "extra": {"host_key": server.host_key},
        }
        if server.password is not None:
            connection["password"] = server.password
        if server.private_key is not None:
            connection["extra"]["private_key"] = server.private_key
        return connection

    def prepare(self) -> None:
        """Connect, so that an error of the server or the account shows at once."""
        self._run(lambda sftp: sftp.realpath("."))

    def put(self, key: str, body: bytes, *, days_old: float = 0) -> None:
        """Write a file, over an existing one."""
        self._run(lambda sftp: self._put(sftp, key, body, days_old))

    def clear(self) -> None:
        """Delete what was put with the folders made for it, or on the own server everything."""
        if self._own:
            self._own.clear()
            self._files.clear()
            self._folders.clear()
        while self._files:
            self._run(lambda sftp: _remove(sftp, self._files.pop()))
        while self._folders:
            self._run(lambda sftp: _remove_empty(sftp, self._folders.pop()))

    def files(self, prefix: str) -> list[StoredFile]:
        """Return the files in a folder and below, or one file where the prefix doesn't end in ``/``."""
        return self._run(lambda sftp: _listed(sftp, prefix))

    def close(self) -> None:
        """Disconnect, and end the own server with its files."""
        self._loop.run(self._disconnect())
        if self._own:
            self._own.stop()

    def _run(self, job: Callable[[asyncssh.SFTPClient], Awaitable[T]]) -> T:
        return self._loop.run(self._in_turn(job))

    async def _in_turn(self, job: Callable[[asyncssh.SFTPClient], Awaitable[T]]) -> T:
        async with self._turn:
            try:
                async with asyncio.timeout(UPLOAD_TIMEOUT):
                    if self._connection is None or self._connection.is_closed():
                        await self._connect()
                    return await job(self._client)
            except asyncssh.SFTPError:  # an answer: the connection is as good as before
                raise
            except BaseException:
                await self._disconnect()
                raise

    async def _connect(self) -> None:
        server = self.server
        keys = [asyncssh.import_private_key(server.private_key)] if server.private_key else None
        connection = await asyncssh.connect(
            server.host,
            server.port,
            username=server.username,
            password=server.password,
            client_keys=keys,
            known_hosts=([asyncssh.import_public_key(server.host_key)], [], []),
            # This user's own SSH settings are for other servers.
            config=None,
            agent_path=None,
        )
        try:
            self._client = await connection.start_sftp_client()
        except BaseException:
            connection.abort()
            raise
        self._connection = connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
            await connection.wait_closed()

    async def _put(self, sftp: asyncssh.SFTPClient, key: str, body: bytes, days_old: float) -> None:
        await self._make(sftp, posixpath.dirname(key))
        partial = key + PARTIAL
        self._files |= {key, partial}
        async with sftp.open(partial, "wb") as file:
            await file.write(body)
        if days_old:
            modified = ((await sftp.stat(partial)).mtime or time.time()) - days_old * 24 * 3600
            await sftp.utime(partial, (modified, modified))
        await sftp.posix_rename(partial, key)
        self._files.discard(partial)

    async def _make(self, sftp: asyncssh.SFTPClient, folder: str) -> None:
        # Checked each time: a reader may delete a folder that it has emptied.
        if not folder or await sftp.isdir(folder):
            return
        await self._make(sftp, posixpath.dirname(folder))
        await sftp.mkdir(folder)
        self._folders.append(folder)


async def _remove(sftp: asyncssh.SFTPClient, file: str) -> None:
    with contextlib.suppress(asyncssh.SFTPNoSuchFile):
        await sftp.remove(file)


async def _remove_empty(sftp: asyncssh.SFTPClient, folder: str) -> None:
    with contextlib.suppress(asyncssh.SFTPError):  # gone, or it holds a file of another's
        await sftp.rmdir(folder)


async def _listed(sftp: asyncssh.SFTPClient, prefix: str) -> list[StoredFile]:
    found = sorted([each async for each in _walk(sftp, prefix)])
    return [
        StoredFile(path, attributes.size or 0, datetime.fromtimestamp(attributes.mtime or 0, timezone.utc))
        for path, attributes in found
    ]


async def _walk(sftp: asyncssh.SFTPClient, prefix: str) -> AsyncIterator[tuple[str, asyncssh.SFTPAttrs]]:
    if not prefix.endswith("/"):
        if await sftp.isfile(prefix):
            yield prefix, await sftp.stat(prefix)
        return
    if not await sftp.isdir(prefix):
        return
    async for entry in sftp.scandir(prefix):
        name = os.fsdecode(entry.filename)
        if name in (".", ".."):
            continue
        if stat.S_ISDIR(entry.attrs.permissions or 0):
            async for below in _walk(sftp, f"{prefix}{name}/"):
                yield below
        else:
            yield prefix + name, entry.attrs


class _OwnServer:
    """Asyncssh's SFTP server in this process, on a folder and with a host key and a password of its own."""

    def __init__(self, loop: LoopThread, port: int) -> None:
        listening = listen(port)
        key = asyncssh.generate_private_key("ssh-ed25519")
        host_key = key.export_public_key().decode().strip()
        port = listening.getsockname()[1]
        self.server = SftpServer(HOST, port, USERNAME, host_key, secrets.token_urlsafe(16))
        self._folder = tempfile.TemporaryDirectory(prefix="healthex-sftp-")
        # One level down: whatever mode a client gives the served folder, the one above keeps other users out.
        self._served = Path(self._folder.name) / "served"
        self._served.mkdir()
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._loop = loop
        self._acceptor = loop.run(self._listen(listening, key))

    def clear(self) -> None:
        """Delete all files, also those of clients."""
        for entry in self._served.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def stop(self) -> None:
        """Drop all connections, free the port and delete the files."""
        self._loop.run(self._close())
        self._folder.cleanup()

    async def _listen(self, listening: socket.socket, key: asyncssh.SSHKey) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            sock=listening,
            server_factory=lambda: _Login(self.server, self._connections),
            server_host_keys=[key],
            sftp_factory=lambda channel: _FilesWithoutLinks(channel, self._served),
            agent_forwarding=False,
        )

    async def _close(self) -> None:
        self._acceptor.close()
        for connection in list(self._connections):
            connection.abort()
            await connection.wait_closed()
        await self._acceptor.wait_closed()


class _FilesWithoutLinks(asyncssh.SFTPServer):
    """
    The files of one folder. Nothing outside is reached, because no link is made and none is followed.

    ``chroot`` alone doesn't do that: a relative link that is moved to another folder leads out of it. Checking a
    path and using it is one step of the event loop, so no other client gets in between.

    :param folder: what is served as ``/``.
    """

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], folder: Path) -> None:
        self._root = os.fsencode(folder.resolve())
        super().__init__(channel, chroot=self._root)

    def map_path(self, path: bytes) -> bytes:
        """Return the local path of a client's path; every method of the base class calls this first."""
        local = super().map_path(path)
        below = self._root
        for name in local[len(self._root) :].split(b"/"):
            below = posixpath.join(below, name)
            if os.path.islink(below):
                raise asyncssh.SFTPPermissionDenied("Links are not followed")
        return local

    def symlink(self, oldpath: bytes, newpath: bytes) -> None:
        raise asyncssh.SFTPPermissionDenied("Links can't be made here")

    def link(self, oldpath: bytes, newpath: bytes) -> None:
        raise asyncssh.SFTPPermissionDenied("Links can't be made here")

    def rmdir(self, path: bytes) -> None:
        if posixpath.normpath(self.map_path(path)) == self._root:
            raise asyncssh.SFTPPermissionDenied("The served folder stays")
        super().rmdir(path)


class _Login(asyncssh.SSHServer):
    """Accepts the server's one account, and keeps its connections so that they can be closed."""

    def __init__(self, server: SftpServer, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._server = server
        self._connections = connections
        self._connection: asyncssh.SSHServerConnection

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._connection)

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        expected = (self._server.password or "").encode()
        return username == self._server.username and secrets.compare_digest(password.encode(), expected)
