"""How much memory an Airflow's parts take while something runs, from /proc."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

EVERY = 0.2  # seconds

TRIGGERER, WORKER = "triggerer", "worker"


@dataclass(frozen=True)
class Process:
    """
    A process of the group.

    :param parent: the process it is a child of.
    :param title: its command line.
    :param resident_mb: what it holds in memory.
    """

    parent: int
    title: str
    resident_mb: float


@dataclass
class Peaks:
    """
    The most that was seen, in MB.

    :param first: at the beginning.
    :param most: since.
    """

    first: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def grown(self, part: str) -> float:
        """By how much a part has grown."""
        return self.most[part] - self.first.get(part, 0)


@contextlib.contextmanager
def watched(group: int) -> Iterator[Peaks]:
    """Watch a process group: of the triggerer all its processes together, of workers the largest process."""
    peaks, ended = Peaks(), threading.Event()
    peaks.first = _by_part(_processes(group))

    def watch() -> None:
        while not ended.wait(EVERY):
            for part, resident in _by_part(_processes(group)).items():
                peaks.most[part] = max(peaks.most[part], resident)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def _by_part(processes: dict[int, Process]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for number, process in processes.items():
        part = _part(number, processes)
        if part == TRIGGERER:
            sums[part] += process.resident_mb
        elif part == WORKER:
            sums[part] = max(sums[part], process.resident_mb)
    return sums


def _part(number: int, processes: dict[int, Process]) -> str | None:
    """Tell by its title, or that of the process it descends from, what a process is part of."""
    while process := processes.get(number):
        if "triggerer" in process.title:
            return TRIGGERER
        if "LocalExecutor" in process.title:
            return WORKER
        number = process.parent
    return None


def _processes(group: int) -> dict[int, Process]:
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended
            # After the name, which may hold anything: state, parent, group, session.
            state = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(state[3]) != group:
                continue
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            status = (folder / "status").read_text()
            resident = next((int(row.split()[1]) for row in status.splitlines() if row.startswith("VmRSS")), 0)
            found[int(folder.name)] = Process(int(state[1]), title, resident / 1024)
    return found
