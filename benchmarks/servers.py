"""A sandbox in a process of its own, so that what is measured does not share its interpreter."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunningSandbox:
    """
    The address of a sandbox.

    :param environment: what leads Airflow to it.
    :param bucket: where it delivers to.
    """

    environment: dict[str, str]
    bucket: str

    @property
    def healthex(self) -> dict[str, Any]:
        """The Airflow connection to its API."""
        connection: dict[str, Any] = json.loads(self.environment["AIRFLOW_CONN_HEALTHEX_DEFAULT"])
        return connection


@contextlib.contextmanager
def sandbox(*options: str) -> Iterator[RunningSandbox]:
    """Serve a sandbox with these options of its command line, on free ports."""
    command = [sys.executable, "-m", "airflow_provider_healthex.sandbox.cli", "serve", "--port", "0", "--s3-port", "0"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("Ctrl-C"):
                    break
            welcome = "".join(lines)
            # It says what happens, and would stop where nobody reads that.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            exported = dict(re.findall(r"^export (\w+)='(.*)'$", welcome, re.MULTILINE))
            found = re.search(r"bucket ([\w.-]+), path", welcome)
            if not exported or not found:
                raise RuntimeError(f"The sandbox did not start: {welcome}")
            yield RunningSandbox(exported, found[1])
        finally:
            process.terminate()


def patient_ids(count: int) -> list[str]:
    """Return the ids that a sandbox with so many ``--patients`` has."""
    return [f"patient-{number:05}" for number in range(1, count + 1)]
