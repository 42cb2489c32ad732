"""
Asyncssh in place of OpenSSH's ``sshd``, where that isn't installed: a process of its own with the same configuration.

Usage: ``python sftp_stand_in.py SSHD_CONFIG LOG``. It obeys ``Port``, ``HostKey``, ``AuthorizedKeysFile`` and of
``ForceCommand internal-sftp`` the folder and the refused requests.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import asyncssh

#: The names that ``internal-sftp -P`` has for requests, where asyncssh's methods have others.
METHODS = {"opendir": "scandir", "posix-rename": "posix_rename"}


class Login(asyncssh.SSHServer):
    """Accepts the holder of a key that is in the file at that moment, under any name."""

    def __init__(self, keys: Path) -> None:
        self._keys = keys

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        lines = self._keys.read_text().splitlines()
        return any(key == asyncssh.import_public_key(line) for line in lines)


class Files(asyncssh.SFTPServer):
    """This user's files; relative paths begin in one folder."""

    def __init__(self, channel: Any, folder: str, denied: list[str], log: Path) -> None:
        super().__init__(channel)
        self._folder = os.fsencode(folder)
        self._log = log
        for request in denied:
            setattr(self, METHODS.get(request, request), self._refuse)

    def map_path(self, path: bytes) -> bytes:
        return os.path.join(self._folder, path)

    def exit(self) -> None:
        with self._log.open("a") as log:
            log.write("Close session:\n")

    def _refuse(self, *_: object) -> None:
        raise asyncssh.SFTPPermissionDenied("Refused")


async def serve(config: Path, log: Path) -> None:
    settings = dict(line.split(maxsplit=1) for line in config.read_text().splitlines())
    command = settings["ForceCommand"].split()
    denied = command[command.index("-P") + 1].split(",") if "-P" in command else []
    folder = command[command.index("-d") + 1]
    log.touch()
    await asyncssh.listen(
        settings["ListenAddress"],
        int(settings["Port"]),
        server_host_keys=[settings["HostKey"]],
        server_factory=lambda: Login(Path(settings["AuthorizedKeysFile"])),
        sftp_factory=lambda channel: Files(channel, folder, denied, log),
        reuse_address=True,
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))
