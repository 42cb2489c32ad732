"""
A real OpenSSH server on loopback, with a configuration, keys and a port of its own.

Where ``sshd`` isn't installed, and only root could do that, asyncssh stands in for it: see ``sftp_stand_in``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from getpass import getuser
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
HAS_SERVER = SSHD is not None or importlib.util.find_spec("asyncssh") is not None
MISSING = "neither sshd nor asyncssh is here: install the extra sftp, or Debian's openssh-server"

needs_sshd = pytest.mark.skipif(
    SSHD is None, reason="about sshd's own processes, and there is none here: install Debian's openssh-server"
)


@dataclass
class OpenSsh:
    """
    ``sshd``, or its stand-in, for this user alone: serves one folder by SFTP to the holder of one key.

    :param folder: for its keys and its log; what it serves is ``folder/served``, where relative paths begin.
    :param denied: SFTP requests that it refuses, as ``internal-sftp -P`` names them. Files' modes would refuse
        nothing where the tests run as root.
    """

    folder: Path
    denied: str = ""
    port: int = field(init=False)
    process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.served.mkdir(parents=True)
        for name in ("host_key", "client_key", "stranger_key"):
            key = Ed25519PrivateKey.generate()
            (self.folder / name).touch(mode=0o600)
            (self.folder / name).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            (self.folder / f"{name}.pub").write_bytes(public + b"\n")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (self.folder / "authorized_keys").write_text((self.folder / "client_key.pub").read_text())
        if SSHD and os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd won't start as root without it
        self._configure()

    @property
    def served(self) -> Path:
        return self.folder / "served"

    @property
    def host_key(self) -> str:
        """The host's public key, as a connection's Extra takes it."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def start(self) -> None:
        config, log = str(self.folder / "sshd_config"), str(self.folder / "sshd.log")
        stand_in = [sys.executable, str(Path(__file__).parent / "sftp_stand_in.py"), config, log]
        self.process = subprocess.Popen([SSHD, "-D", "-f", config, "-E", log] if SSHD else stand_in)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                log = self.folder / "sshd.log"
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"sshd: {log.read_text() if log.exists() else 'no log'}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def deny(self, requests: str) -> None:
        """Refuse these requests from the next connection on."""
        self.denied = requests
        self.stop()
        self._configure()
        self.start()

    def connection(self, *, key: str = "client_key", **extra: Any) -> str:
        """Return an Airflow connection to it; an extra of None is left out."""
        extras = {"private_key": (self.folder / key).read_text(), "host_key": self.host_key, **extra}
        return json.dumps(
            {
                "conn_type": "sftp",
                "host": "127.0.0.1",
                "port": self.port,
                "login": getuser(),
                "extra": {name: value for name, value in extras.items() if value is not None},
            }
        )

    def put(self, path: str, body: bytes = b"{}", *, modified: float | None = None) -> datetime:
        """Write a file at once, with a modification time (epoch seconds), and return that time."""
        file = self.served / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)
        if modified is not None:
            os.utime(file, (modified, modified))
        return datetime.fromtimestamp(int(file.stat().st_mtime), timezone.utc)

    def visits(self) -> int:
        """Return how many sessions have ended."""
        return (self.folder / "sshd.log").read_text().count("Close session:")

    def clear(self) -> None:
        """Serve nothing, while connections are still accepted."""
        shutil.rmtree(self.served)
        self.served.mkdir()
        if self.denied:
            self.deny("")
        if self.process is None:
            self.start()

    def _configure(self) -> None:
        denied = f" -P {self.denied}" if self.denied else ""
        (self.folder / "sshd_config").write_text(
            "\n".join(
                [
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {self.folder}/host_key",
                    f"AuthorizedKeysFile {self.folder}/authorized_keys",
                    f"PidFile {self.folder}/sshd.pid",
                    "StrictModes no",  # the keys lie below /tmp
                    "UsePAM no",
                    "PasswordAuthentication no",
                    "PermitRootLogin prohibit-password",
                    "MaxStartups 100",
                    "LogLevel VERBOSE",
                    "Subsystem sftp internal-sftp",
                    f"ForceCommand internal-sftp -d {self.served}{denied}",
                ]
            )
            + "\n"
        )
