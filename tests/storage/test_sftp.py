"""Listing an SFTP server: beside a triggerer's event loop, and no more at once than the server allows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

asyncssh = pytest.importorskip("asyncssh")

from helpers.odd_sftp import OddSftp  # noqa: E402

from airflow_provider_healthex.delivery import Waiting  # noqa: E402
from airflow_provider_healthex.delivery.sftp_listing import WIDTH  # noqa: E402
from airflow_provider_healthex.delivery.sftp_requests import Entry, ListFolder, Server  # noqa: E402
from airflow_provider_healthex.storage.sftp import TRIGGERER, AsyncSftpServer, SftpServer  # noqa: E402

FILE = asyncssh.SFTPAttrs(permissions=0o100644, size=2, atime=0, mtime=0)


class LimitedFolders:
    """Lets so many folders be open at a time, and refuses more as OpenSSH does."""

    def __init__(self, limit: int) -> None:
        self.limit, self.open, self.most, self.refused = limit, 0, 0, 0

    def open_folder(self, files: object, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        if self.open >= self.limit:
            self.refused += 1
            raise asyncssh.SFTPFailure("too many open handles")
        self.open += 1
        self.most = max(self.most, self.open)
        return self._list(path)

    async def _list(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        yield asyncssh.SFTPName(path.rpartition(b"/")[2] + b".json", attrs=FILE)
        self.open -= 1


def folders(count: int, times: int = 1):
    """Plan to list so many folders, and return the names of their files."""
    found: list[list[str]] = []
    yield [Server()]
    for _ in range(times):
        answers = yield [ListFolder(f"d/{number:02}") for number in range(count)]
        found.append([entry.name for entries in answers for entry in entries])
    return found


@pytest.fixture
def limited(request, monkeypatch):
    limits = LimitedFolders(request.param)
    with OddSftp(scandir=lambda files, path: limits.open_folder(files, path)) as server:
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection())
        yield limits


@pytest.mark.parametrize("limited", [1, 3, 10, WIDTH], indirect=True)
def test_a_server_that_limits_open_folders_is_listed_all_the_same(limited, airflow_database):
    names = [f"{number:02}.json" for number in range(WIDTH)]
    assert SftpServer("sftp_default").run(folders(WIDTH, times=3)) == [names] * 3
    assert limited.most == limited.limit
    # Once it is known, no more are opened than that; half as many at the least.
    assert limited.refused < 2 * WIDTH


@pytest.mark.parametrize("limited", [0], indirect=True)
def test_a_server_that_refuses_each_folder_is_waited_for(limited, airflow_database):
    server = SftpServer("sftp_default")
    found = server.run(folders(WIDTH))
    assert isinstance(found, Waiting)
    assert found.reason == "The SFTP server did not answer the worker (SFTPFailure); retrying at the next poke"
    limited.limit = WIDTH
    assert len(server.run(folders(WIDTH))[0]) == WIDTH
    assert limited.most > WIDTH / 2, "the next poke begins with all again"


@pytest.mark.parametrize("limited", [WIDTH], indirect=True)
def test_a_triggerers_plan_does_not_run_on_its_event_loop(limited, airflow_database):
    threads = set()

    def plan():
        for batch in ([Server()], [ListFolder("d")]):
            threads.add(threading.current_thread())
            answers = yield batch
        threads.add(threading.current_thread())
        return answers

    async def run():
        async with AsyncSftpServer("sftp_default", TRIGGERER) as server:
            return await server.run(plan())

    (entries,) = asyncio.run(run())
    assert [type(entry) for entry in entries] == [Entry]
    assert threading.main_thread() not in threads
