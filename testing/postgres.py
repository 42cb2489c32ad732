"""A private PostgreSQL on loopback, gone afterwards."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testing import Unavailable

#: The account that runs it where we are root: PostgreSQL refuses root.
UNPRIVILEGED = "postgres"


class Postgres:
    """
    A cluster that can be stopped and started again.

    :param folder: an empty folder for its data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._port, self._password = folder, free_port(), secrets.token_hex(16)
        self._programs = _programs()
        self._runs_as: dict[str, Any] = {"cwd": folder}
        self._server: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            account = pwd.getpwnam(UNPRIVILEGED)
            os.chown(folder, account.pw_uid, account.pw_gid)
            self._runs_as |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        secret = folder / "password"
        secret.touch(mode=0o644)  # in a folder that only its owner can open
        secret.write_text(self._password)
        subprocess.run(
            [f"{self._programs}/initdb", "-D", self._data, "-U", "airflow", "-A", "scram-sha-256",
             f"--pwfile={secret}"],
            check=True, capture_output=True, **self._runs_as,
        )  # fmt: skip
        secret.unlink()

    @property
    def address(self) -> str:
        """The database's URL, for libpq and SQLAlchemy."""
        return f"postgresql://airflow:{self._password}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        self._server = subprocess.Popen(
            [f"{self._programs}/postgres", "-D", self._data, "-h", "127.0.0.1", "-p", str(self._port),
             "-k", str(self._folder)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **self._runs_as,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._server.poll() is None:
            ready = [f"{self._programs}/pg_isready", "-h", "127.0.0.1", "-p", str(self._port)]
            if subprocess.run(ready, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError("PostgreSQL did not start.")

    def stop(self) -> None:
        """Stop the server at once: its sessions are cut."""
        if self._server:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(30)

    @property
    def _data(self) -> str:
        return f"{self._folder}/data"


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """
    Run a cluster until the end of the block.

    :raises Unavailable: where PostgreSQL or its driver isn't installed.
    """
    if importlib.util.find_spec("psycopg2") is None:
        raise Unavailable("it needs PostgreSQL's driver: pip install psycopg2-binary asyncpg")
    with tempfile.TemporaryDirectory(prefix="healthex-postgres-") as folder:
        cluster = Postgres(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def version() -> str:
    """Return the installed server's version."""
    shown = subprocess.run([f"{_programs()}/postgres", "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.split()[2]


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _programs() -> str:
    found = shutil.which("initdb")
    if found:
        return str(Path(found).resolve().parent)
    installed = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not installed:
        raise Unavailable("it needs PostgreSQL: apt-get install postgresql, or another package with initdb")
    return str(Path(installed[-1]).parent)
