"""An Airflow of the sandbox's own: its home, its settings and its processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DEFAULT_HOME = Path(".airflow")

GRACE_PERIOD = 20  # seconds for a process group to end by itself


class AirflowHome:
    """
    A private ``AIRFLOW_HOME``.

    :param path: the folder; made where it is missing.
    :param variables: more environment variables, for example connections.
    """

    def __init__(self, path: Path, dags_folder: Path, variables: Mapping[str, str]) -> None:
        self.path = path.resolve()
        self.path.mkdir(parents=True, exist_ok=True)
        # Another Airflow's settings must not leak in.
        mine = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        self.environment = {
            **mine,
            # `airflow standalone` starts its parts by the name alone, and the environment may not be activated.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), mine.get("PATH", os.defpath)]),
            "AIRFLOW_HOME": str(self.path),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder.resolve()),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "false",
            **variables,
        }

    def run(self, *arguments: str) -> None:
        """
        Run an Airflow command to its end, quietly.

        :raises RuntimeError: with its output, where it fails.
        """
        done = subprocess.run(_command(arguments), env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"airflow {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-4000:]}")

    def migrate(self, *, afresh: bool = False) -> None:
        """
        Make the metadata database, or bring it up to date.

        :param afresh: begin with an empty home.
        :raises ValueError: where the folder holds files of another program.
        """
        mark = self.path / ".healthex-sandbox"
        if not mark.exists() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and not from the sandbox: give another folder.")
        if afresh:
            shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
        mark.touch()
        self.run("db", "migrate")

    def add_connections(self, connections: Mapping[str, Mapping[str, Any]]) -> None:
        """Put connections into the database, where the UI shows them."""
        file = self.path / "connections.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps({name: _as_imported(connection) for name, connection in connections.items()}))
        try:
            self.run("connections", "import", "--overwrite", str(file))
        finally:
            file.unlink()

    @contextlib.contextmanager
    def start(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Start an Airflow command with its children, and end them all on leaving."""
        process = subprocess.Popen(
            _command(arguments), env=self.environment, text=True, start_new_session=True, **options
        )
        try:
            yield process
        finally:
            _end_group(process)


def _command(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "airflow", *arguments]


def _as_imported(connection: Mapping[str, Any]) -> dict[str, Any]:
    extra = connection.get("extra")
    return {**connection, **({"extra": json.dumps(extra)} if isinstance(extra, Mapping) else {})}


def _end_group(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + GRACE_PERIOD
        while time.monotonic() < deadline:
            process.poll()
            if not _group_lives(process.pid):
                return
            time.sleep(0.05)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
