"""A benchmark's report, and its form as text, Markdown and JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata


@dataclass(frozen=True)
class Report:
    """
    The result of a benchmark.

    :param name: of the benchmark.
    :param question: what was measured, in a sentence.
    :param ratio: the answer, as a ratio to what one would write without us.
    :param target: what the ratio should be, or an empty string.
    :param met: whether it is; None where there is no target.
    :param columns: of the table.
    :param rows: of the table, the baseline's first.
    :param notes: what one must know to read it.
    :param chart: an SVG of it, or an empty string.
    """

    name: str
    question: str
    ratio: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    target: str = ""
    met: bool | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    chart: str = field(default="", repr=False)

    @property
    def verdict(self) -> str:
        """The target and whether it is met."""
        if self.met is None:
            return f"target: {self.target}" if self.target else "no target"
        return f"target: {self.target}: {'met' if self.met else 'MISSED'}"


def as_text(report: Report) -> str:
    """Return a report for a terminal."""
    rows = [list(report.columns), *map(list, report.rows)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(report.columns))]
    lines = [_line(row, widths) for row in rows]
    notes = [f"* {note}" for note in report.notes]
    return "\n".join([f"{report.name}: {report.ratio}   ({report.verdict})", report.question, "", *lines, *notes])


def as_markdown(report: Report) -> str:
    """Return a report for a page."""
    head = f"| {' | '.join(report.columns)} |\n|{'|'.join(['---'] + ['---:'] * (len(report.columns) - 1))}|"
    rows = [f"| {' | '.join(row)} |" for row in report.rows]
    notes = [f"- {note}" for note in report.notes]
    headline = f"**{report.ratio}** ({report.verdict})"
    picture = [f"![{report.question}]({report.name}.svg)", ""] if report.chart else []
    lines = [f"## {report.name}", "", headline, "", report.question, "", *picture, head, *rows, "", *notes]
    return "\n".join(lines).rstrip()


def machine() -> str:
    """Describe this machine in words: nothing that tells one from another of its kind."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("apache-airflow", "apache-airflow-providers-amazon", "boto3", "requests")
    )
    return (
        f"{cores} cores, {memory:.0f} GB of memory, {platform.system()} on {platform.machine()}, "
        f"Python {platform.python_version()}; {versions}. Servers and clients share the cores."
    )


def page(reports: Sequence[Report]) -> str:
    """Return the whole of RESULTS.md."""
    introduction = (
        "What `make bench` printed. Each benchmark measures what one would write without this package in the same "
        "run, and the ratio comes first: seconds belong to the machine, ratios travel better."
    )
    parts = ["# Benchmarks", introduction, f"Machine: {machine()}", *map(as_markdown, reports)]
    return "\n\n".join(parts) + "\n"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    rest = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join([f"{row[0]:<{widths[0]}}", *rest])
