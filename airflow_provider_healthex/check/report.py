"""The report of a check, line by line: a verdict, and what to do. As text and as JSON, with ids shortened."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from airflow_provider_healthex.check.behaviour import Behaviour
from airflow_provider_healthex.check.layout import Template
from airflow_provider_healthex.check.words import plural

STEPS = {
    1: "Connection",
    2: "Token",
    3: "Service",
    4: "Store",
    5: "Layout found",
    6: "Behaviour found",
    7: "Advice",
    8: "Refresh",
}

#: Columns of the text form.
WIDTH = 96


class Status(StrEnum):
    """How a line is to be taken."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Line:
    """
    One thing that was checked.

    :param verdict: what is the case.
    :param advice: what to do; empty where there is nothing to.
    """

    step: int
    status: Status
    verdict: str
    advice: str = ""


@dataclass(frozen=True)
class Assumption:
    """
    Something this package assumes of HealthEx's deliveries.

    :param status: ``confirmed``, ``contradicted`` or ``open``.
    :param why: what of this account says so.
    """

    text: str
    status: str
    why: str


def shorten(id_: str) -> str:
    """Return so much of an id that its owner recognises it, and nobody else."""
    return id_[:2] + "…" if len(id_) < 9 else f"{id_[:4]}…{id_[-2:]}"


@dataclass
class Shortener:
    """
    Shortens every known id in a text.

    :param show_ids: leave them as they are.
    """

    show_ids: bool = False
    _ids: set[str] = field(default_factory=set)

    def learn(self, ids: Iterable[str | None]) -> None:
        """Shorten these from now on."""
        self._ids |= {id_ for id_ in ids if id_}

    def __call__(self, text: str) -> str:
        """Return the text with ids shortened."""
        if self.show_ids:
            return text
        found = sorted((id_ for id_ in self._ids if id_ in text), key=len, reverse=True)
        for id_ in found:
            text = re.sub(rf"(?<![0-9A-Za-z]){re.escape(id_)}(?![0-9A-Za-z])", shorten(id_), text)
        return text


@dataclass
class Report:
    """
    The lines of one check, and what was inferred.

    :param shortener: every line goes through it.
    :param advice: Python to copy; no ids in it.
    """

    shortener: Shortener = field(default_factory=Shortener)
    lines: list[Line] = field(default_factory=list)
    templates: tuple[Template, ...] = ()
    behaviour: Behaviour | None = None
    advice: str = ""
    assumptions: list[Assumption] = field(default_factory=list)
    interrupted: bool = False
    pictures: list[str] = field(default_factory=list)

    def ok(self, step: int, verdict: str, advice: str = "") -> None:
        """Add a line about what is as it should be."""
        self._add(step, Status.OK, verdict, advice)

    def warn(self, step: int, verdict: str, advice: str = "") -> None:
        """Add a line about what may be wrong, or can't be known."""
        self._add(step, Status.WARNING, verdict, advice)

    def fail(self, step: int, verdict: str, advice: str = "") -> None:
        """Add a line about what must be changed."""
        self._add(step, Status.FAILURE, verdict, advice)

    def skip(self, step: int, verdict: str) -> None:
        """Add a line about what could not be checked."""
        self._add(step, Status.SKIPPED, verdict, "")

    def _add(self, step: int, status: Status, verdict: str, advice: str) -> None:
        self.lines.append(Line(step, status, self.shortener(verdict), self.shortener(advice)))

    def has_failed(self, *steps: int) -> bool:
        """Whether a line of one of these steps, by default of any, is a failure."""
        return any(line.status is Status.FAILURE and (not steps or line.step in steps) for line in self.lines)

    @property
    def verdict(self) -> Status:
        """The worst of the lines."""
        return next(
            (
                status
                for status in (Status.FAILURE, Status.WARNING)
                if any(line.status is status for line in self.lines)
            ),
            Status.OK,
        )

    def counts(self) -> dict[str, int]:
        """Return how many lines have which status."""
        return {status.value: sum(line.status is status for line in self.lines) for status in Status}

    def text(self, since: int = 1) -> str:
        """
        Return the report for people.

        :param since: leave out the steps before this one.
        """
        parts = [self._advice() if number == 7 else self._step(number) for number in STEPS if number >= since]
        counts = self.counts()
        parts.append(
            f"{self.verdict.value}: {plural(counts['failure'], 'failure')}, {plural(counts['warning'], 'warning')}, "
            f"{counts['ok']} ok" + (f", {counts['skipped']} skipped" if counts["skipped"] else "")
        )
        return "\n\n".join(part for part in parts if part)

    def _step(self, number: int) -> str:
        lines = [line for line in self.lines if line.step == number]
        text = [f"{number} {STEPS[number]}"]
        for line in lines:
            text += _wrapped(f"  {line.status.value:8} ", line.verdict)
            if line.advice:
                text += _wrapped("           → ", line.advice)
        return "\n".join(text) if lines else ""

    def _advice(self) -> str:
        own = self._step(7)
        text = [own or f"7 {STEPS[7]}"] if own or self.advice or self.assumptions else []
        if self.advice:
            text.append("\n" + "\n".join(f"    {line}".rstrip() for line in self.advice.splitlines()))
        if self.assumptions:
            text.append("\n  Assumptions of this package, and what this account shows")
            for each in self.assumptions:
                text += _wrapped(f"  {each.status:12} ", f"{each.text} ({each.why})")
        return "\n".join(text)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        show = self.shortener.show_ids
        return {
            "verdict": self.verdict.value,
            "counts": self.counts(),
            "lines": [{**asdict(line), "status": line.status.value, "title": STEPS[line.step]} for line in self.lines],
            "templates": [
                {**asdict(each), "path": each.shown(show_ids=show), "is_thin": each.is_thin} for each in self.templates
            ],
            "behaviour": self._behaviour(),
            "advice": self.advice,
            "assumptions": [asdict(each) for each in self.assumptions],
            "interrupted": self.interrupted,
            "pictures": self.pictures,
        }

    def _behaviour(self) -> dict[str, Any] | None:
        if self.behaviour is None:
            return None
        return {**asdict(self.behaviour), "objects": {str(key): n for key, n in self.behaviour.objects.items()}}

    def json(self) -> str:
        """Return the report for programs."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)


def _wrapped(start: str, text: str) -> list[str]:
    """Return a text in lines that a terminal shows whole."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
