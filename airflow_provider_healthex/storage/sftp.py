"""How a worker or a triggerer lists an SFTP server and writes to it, and which of its errors are transient."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException

from airflow_provider_healthex.delivery.hints import sftp_hint
from airflow_provider_healthex.delivery.plan import Pause, Plan, Steps, Waiting, advance
from airflow_provider_healthex.delivery.sftp_clock import digest
from airflow_provider_healthex.delivery.sftp_listing import CONFIRMATION, WIDTH, SftpListing
from airflow_provider_healthex.delivery.sftp_requests import (
    Entry,
    EntryType,
    ListFolder,
    NoSuchRoot,
    Obstacle,
    Server,
    Stat,
)
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExConnectionError, HealthExError
from airflow_provider_healthex.hooks.connection import find_connection_async

try:
    import asyncssh
    from airflow.providers.sftp.hooks.sftp import SFTPHookAsync
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"Waiting on an SFTP server needs {error.name}: pip install 'airflow-provider-healthex[sftp]'", name=error.name
    ) from error

from airflow_provider_healthex.storage.sftp_keys import check_keys

if TYPE_CHECKING:
    from airflow_provider_healthex.delivery.template import Target

T = TypeVar("T")

WORKER, TRIGGERER = "worker", "triggerer"
LISTING, WRITING = "listing", "writing to"

#: Seconds for opening a connection, listing some folders and writing a file, until the server is taken to hang.
REQUEST_LIMIT = 120.0
#: Seconds for a whole poke, of however many folders.
POKE_LIMIT = 600.0
#: Seconds for a connection to close.
CLOSE_LIMIT = 5.0

# It logs each connection in a dozen lines at INFO, where a poke is one line. A level that somebody has set stays.
if logging.getLogger("asyncssh").level == logging.NOTSET:
    logging.getLogger("asyncssh").setLevel(logging.WARNING)

_TRANSIENT = (
    asyncssh.ConnectionLost,
    asyncssh.ServiceNotAvailable,
    asyncssh.SFTPNoConnection,
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPFailure,
    asyncssh.SFTPEOFError,
    OSError,
)
#: How a server reports that it is busy, or about to end.
_TRANSIENT_CODES = {
    asyncssh.DisconnectError: (asyncssh.DISC_TOO_MANY_CONNECTIONS, asyncssh.DISC_BY_APPLICATION),
    asyncssh.ChannelOpenError: (asyncssh.OPEN_RESOURCE_SHORTAGE,),
}
#: Files of the connection that aren't there, or can't be read: no later poke finds them.
_LOCAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

_TYPES = {
    asyncssh.FILEXFER_TYPE_REGULAR: EntryType.FILE,
    asyncssh.FILEXFER_TYPE_DIRECTORY: EntryType.FOLDER,
    asyncssh.FILEXFER_TYPE_UNKNOWN: EntryType.UNKNOWN,
}

_KEYS = "correct its private key, key_file or known_hosts"
_LOGIN = "correct the login, password or key of the connection"
_RIGHTS = {LISTING: "let the account list the folders of the path", WRITING: "let the account write there"}
_ADVICE: dict[type[BaseException], str] = {
    asyncssh.PermissionDenied: _LOGIN,
    asyncssh.ProtocolError: f"{_LOGIN}, or its host and port",
    asyncssh.ChannelOpenError: "let the account use SFTP",
    asyncssh.HostKeyNotVerifiable: (
        "the server's key isn't the one that is known, or none is: compare it with its owner's, and put it into the "
        "connection's Extra as host_key, or into ~/.ssh/known_hosts"
    ),
    asyncssh.KeyExchangeFailed: "see which algorithms both sides support",
    asyncssh.KeyImportError: _KEYS,
    **dict.fromkeys(_LOCAL, _KEYS),
    asyncssh.KeyEncryptionError: "give the key's passphrase as private_key_passphrase in the connection's Extra",
    OverflowError: "correct the port of the connection",
    ValueError: "correct the keys, host_key and no_host_key_check in the connection's Extra",
}


class _Unusable(Exception):
    """The part of a connection that Airflow or asyncssh can't use, by the error's cause."""


@dataclass
class SftpServer:
    """
    An SFTP server as one component lists it, over the pokes of one wait.

    Worker and triggerer go through the provider's asynchronous hook, so that the worker's first poke meets what the
    triggerer will. Each poke has a connection of its own: a minute's idle one is easily lost, and a new one takes what
    the Airflow connection says by then.

    :param sftp_conn_id: the Airflow connection.
    :param component: ``worker`` or ``triggerer``: each may reach other hosts and hold other keys, so errors name it.
    :param listed: whether a listing of this wait succeeded before.
    :param confirmation: seconds until a second listing must show the same.
    """

    sftp_conn_id: str
    component: str = WORKER
    listed: bool = False
    confirmation: float = CONFIRMATION
    _origin: str = field(default="", init=False)  # scheme, host and port
    _home: str = field(default="/", init=False)  # where relative paths begin
    _server: str = field(default="", init=False)
    _width: int = field(default=WIDTH, init=False)  # requests at once

    @property
    def listing(self) -> Callable[..., SftpListing]:
        """How a wait lists this server."""
        return partial(SftpListing, confirmation=self.confirmation)

    @property
    def bucket(self) -> None:
        """None: results have no bucket."""

    def uri(self, key: str) -> str:
        """Return a path's URI, absolute; after the first poke."""
        return self._origin + (key if key.startswith("/") else f"{self._home.rstrip('/')}/{key}")

    def address(self, path: str) -> str:
        """Return a path as messages show it."""
        return f"{path!r} on sftp_conn_id={self.sftp_conn_id!r}"

    def hint(self, target: Target) -> Steps[str | None] | None:
        """Plan how to find out why nothing matches a path; None where that would take a walk."""
        return sftp_hint(target)

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what a trigger needs to list this server."""
        return {"sftp_conn_id": self.sftp_conn_id}

    def run(self, plan: Plan[T]) -> T | Waiting:
        """
        Make a plan's requests over one connection and return what they show.

        :returns: that, or a `Waiting` after a transient error.
        :raises HealthExConfigurationError: for a permanent error, or a server that isn't the known one.
        """
        return asyncio.run(self.run_async(plan))

    async def run_async(self, plan: Plan[T]) -> T | Waiting:
        """Do what `run` does."""
        try:
            async with _within(POKE_LIMIT), self._open() as sftp:
                return await self._drive(plan, sftp)
        except Exception as error:
            trouble = error
        return self._judge(trouble, LISTING)

    def put(self, key: str, body: bytes | IO[bytes]) -> None:
        """
        Write a file, and the folders it lies in where they are missing.

        :raises HealthExConfigurationError: for a permanent error.
        :raises HealthExError: for a transient one.
        """
        try:
            asyncio.run(self._put(key, body if isinstance(body, bytes) else body.read()))
            return
        except Exception as error:
            trouble = error
        self._judge(trouble, WRITING)
        raise HealthExError(
            f"The SFTP server did not take the manifest ({type(trouble).__name__}): the delivery is there, and a "
            "retry of the task writes it."
        )

    async def _put(self, key: str, body: bytes) -> None:
        async with _within(POKE_LIMIT), self._open() as sftp, _within(REQUEST_LIMIT):
            try:
                await _write(sftp, key, body)
            except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                await sftp.makedirs(key.rpartition("/")[0], exist_ok=True)
                await _write(sftp, key, body)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[asyncssh.SFTPClient]:
        connection = await find_connection_async(self.sftp_conn_id)
        for name, value in (("host", connection.host), ("login", connection.login)):
            if not value:
                raise HealthExConfigurationError(f"The connection {self.sftp_conn_id!r} names no {name}: give it one.")
        check_keys(self.sftp_conn_id, connection.extra_dejson)
        stack = AsyncExitStack()
        try:
            async with _within(REQUEST_LIMIT):
                sftp = await self._connect(stack)
                self._home = str(await sftp.realpath("."))
            host = str(connection.host)
            host = f"[{host}]" if ":" in host else host
            self._origin = f"sftp://{host}" + (f":{connection.port}" if connection.port else "")
            self._server = digest((self._origin, connection.login, self._home))
            yield sftp
        finally:
            with suppress(TimeoutError):  # a server that hangs doesn't close either
                async with _within(CLOSE_LIMIT):
                    await stack.aclose()

    async def _connect(self, stack: AsyncExitStack) -> asyncssh.SFTPClient:
        try:
            hook = SFTPHookAsync(sftp_conn_id=self.sftp_conn_id)
            return await stack.enter_async_context(hook.get_managed_conn())
        except AirflowNotFoundException:  # the hook looks it up once more, and it was there a moment ago
            raise HealthExConnectionError(
                f"Airflow's look-up of connection {self.sftp_conn_id!r} failed: it was found a moment ago."
            ) from None
        except (ValueError, OverflowError, TypeError) as error:
            raise _Unusable from error

    async def _drive(self, plan: Plan[T], sftp: asyncssh.SFTPClient) -> T:
        answers: Sequence[Any] | None = None
        while True:
            # Thousands of files take a moment, which the event loop must not spend.
            batch, end = await asyncio.to_thread(advance, plan, answers)
            if end is not None:
                self.listed = True
                return cast("T", end.value)
            if isinstance(batch[0], Pause):
                await asyncio.sleep(batch[0].seconds)
                answers = [None]
            elif isinstance(batch[0], Server):
                answers = [self._server]
            else:
                async with _within(REQUEST_LIMIT):
                    answers = await self._answer_all(sftp, batch)

    async def _answer_all(self, sftp: asyncssh.SFTPClient, batch: Sequence[Stat | ListFolder]) -> Sequence[Any]:
        """Make the requests of a batch at once; fewer where the server refuses some, as it limits open folders."""
        answers: dict[int, Any] = {}
        while len(answers) < len(batch):
            left = [position for position in range(len(batch)) if position not in answers][: self._width]
            found = await asyncio.gather(*(_answer(sftp, batch[position]) for position in left), return_exceptions=True)
            errors = [each for each in found if isinstance(each, BaseException)]
            for error in errors:
                if not isinstance(error, asyncssh.SFTPFailure) or len(left) == 1:
                    self._width = WIDTH  # it was not too many
                    raise error
            if errors:
                self._width = max(1, len(left) // 2)
            answers.update(
                (position, each) for position, each in zip(left, found, strict=True) if not isinstance(each, Exception)
            )
        return [answers[position] for position in range(len(batch))]

    def _judge(self, error: Exception, doing: str) -> Waiting:
        """
        Return a transient error as a reason to wait, and raise any other.

        Not to be called where an exception is handled: a server's texts may quote the path, and those of what reads a
        connection its Extra, so that none may become a cause or context of what is raised here.
        """
        if isinstance(error, HealthExConfigurationError):
            raise error
        if isinstance(error, HealthExConnectionError):  # Airflow's trouble, not the server's
            return Waiting(str(error))
        server = f"the SFTP server of sftp_conn_id={self.sftp_conn_id!r}"
        if isinstance(error, Obstacle):
            return Waiting(f"{error}; retrying at the next poke")
        if isinstance(error, NoSuchRoot):
            raise HealthExConfigurationError(
                f"There is no folder {error.folder!r} on {server}, as the {self.component} sees it: create it, or "
                "correct the path. An account may see another root than others do; without a leading '/' the path "
                "begins at the account's own folder."
            )
        known = isinstance(error, (asyncssh.Error, AirflowException, _Unusable, *_LOCAL))
        cause = error.__cause__ if isinstance(error, _Unusable) else error
        kind = type(cause).__name__
        # Final only where this account has never seen anything, but for another server in this one's place.
        seen = self.listed and doing == LISTING and not isinstance(error, asyncssh.HostKeyNotVerifiable)
        if _is_transient(error) or (known and seen):
            return Waiting(f"The SFTP server did not answer the {self.component} ({kind}); retrying at the next poke")
        if not known:
            raise error
        advice = _advice(cause, doing) or "see the server's log"
        raise HealthExConfigurationError(f"The {self.component}, {doing} {server}, failed: {kind}; {advice}.")


@dataclass
class AsyncSftpServer(SftpServer):
    """An SFTP server as a triggerer lists it. Use it as an asynchronous context manager."""

    async def __aenter__(self) -> AsyncSftpServer:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Do nothing: each poke closes its connection."""

    run = SftpServer.run_async  # type: ignore[assignment]


async def _write(sftp: asyncssh.SFTPClient, path: str, body: bytes) -> None:
    async with sftp.open(path, "wb") as file:
        await file.write(body)


async def _answer(sftp: asyncssh.SFTPClient, request: Stat | ListFolder) -> Any:
    """Make a request and return its answer."""
    try:
        if isinstance(request, Stat):
            attributes = await (sftp.stat if request.follow else sftp.lstat)(request.path)
            return _entry(request.path, attributes)
        return [_listed(each) async for each in sftp.scandir((request.path or ".").encode())]
    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
        return None


def _entry(name: str, attributes: asyncssh.SFTPAttrs) -> Entry:
    kind = _TYPES.get(attributes.type, EntryType.OTHER)
    modified = None if attributes.mtime is None else max(0, min(attributes.mtime, 2**32))
    return Entry(name, kind, attributes.size or 0, modified)


def _listed(found: asyncssh.SFTPName) -> Entry:
    """Return an entry of a folder. Its name is bytes, which need not be text."""
    assert isinstance(found.filename, bytes)
    entry = _entry(found.filename.decode(errors="backslashreplace"), found.attrs)
    kind = found.longname[:1]  # as `ls -l` shows it
    if entry.type is EntryType.UNKNOWN:
        entry = entry._replace(type=_LONG_TYPES.get(kind, EntryType.UNKNOWN))
    nameless = (
        found.filename in (b".", b"..")
        or b"/" in found.filename
        or (entry.type is not EntryType.FILE and not _is_text(found.filename))
    )
    return entry._replace(type=EntryType.OTHER) if nameless or kind == b"l" else entry


_LONG_TYPES: dict[bytes | str, EntryType] = {b"-": EntryType.FILE, b"d": EntryType.FOLDER}


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_transient(error: Exception) -> bool:
    codes = next((codes for kind, codes in _TRANSIENT_CODES.items() if type(error) is kind), ())
    return (isinstance(error, _TRANSIENT) and not isinstance(error, _LOCAL)) or getattr(error, "code", None) in codes


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """Give up after some seconds, and a second time: when cancelled, asyncssh sends the server one more request."""
    async with asyncio.timeout(seconds + 1):
        async with asyncio.timeout(seconds):
            yield


def _advice(error: BaseException | None, doing: str) -> str | None:
    if isinstance(error, asyncssh.SFTPPermissionDenied):
        return _RIGHTS[doing]
    return next((advice for kind, advice in _ADVICE.items() if isinstance(error, kind)), None)
