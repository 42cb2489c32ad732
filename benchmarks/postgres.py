"""A PostgreSQL of the benchmarks' own: a private cluster on loopback, gone afterwards."""

from __future__ import annotations

import contextlib
import glob
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

from benchmarks.report import Unavailable

#: Who runs it where we are root, whom it refuses.
UNPRIVILEGED = "postgres"


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """
    Run a cluster and give its address, as libpq and SQLAlchemy read it.

    :raises Unavailable: where PostgreSQL isn't installed.
    """
    programs = _programs()
    with tempfile.TemporaryDirectory(prefix="bench-postgres-") as folder:
        runs_as: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam(UNPRIVILEGED)
            os.chown(folder, account.pw_uid, account.pw_gid)
            runs_as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        password, port = secrets.token_hex(16), free_port()
        secret = Path(folder, "password")
        secret.touch(mode=0o644)  # in a folder that is nobody else's
        secret.write_text(password)
        data = f"{folder}/data"
        subprocess.run(
            [f"{programs}/initdb", "-D", data, "-U", "airflow", "-A", "scram-sha-256", f"--pwfile={secret}"],
            check=True, capture_output=True, cwd=folder, **runs_as,
        )  # fmt: skip
        secret.unlink()
        with subprocess.Popen(
            [f"{programs}/postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **runs_as,
        ) as server:  # fmt: skip
            try:
                _wait_until_ready(programs, port, server)
                yield f"postgresql://airflow:{password}@127.0.0.1:{port}/postgres"
            finally:
                server.send_signal(signal.SIGINT)  # ends the sessions too
                server.wait(30)


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


def _wait_until_ready(programs: str, port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        asked = subprocess.run([f"{programs}/pg_isready", "-h", "127.0.0.1", "-p", str(port)], capture_output=True)
        if asked.returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError("PostgreSQL did not start.")
