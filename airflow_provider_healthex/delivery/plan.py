"""
Plans: which requests a poke makes, without making them.

A plan is a generator. It yields a batch of requests, which don't depend on each other, and is sent their answers in the
same order. A worker and a triggerer drive the same plan with whatever client they have (`storage`), so poke, reschedule
and deferred mode decide alike, and tests need no server.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from airflow_provider_healthex.delivery.rule import StoredObject

T = TypeVar("T")

#: Yields requests, is sent their answers, returns what they show.
Plan = Generator[Sequence[Any], Sequence[Any], T]

#: One thread of a plan: each request depends on the answer before.
Steps = Generator[Any, Any, T]

#: Takes objects of a patient: the patient's position, and the objects.
Take = Callable[[int, Sequence[StoredObject]], None]


@dataclass(frozen=True)
class Pause:
    """Requests that some seconds pass."""

    seconds: float


@dataclass(frozen=True)
class Waiting:
    """
    Nothing, or not enough, has arrived, or a transient error came in between.

    :param reason: what is there and what is missing, without an id.
    :param unmatched: positions of the paths that nothing at all matches, neither fresh nor stale.
    """

    reason: str
    unmatched: tuple[int, ...] = ()

    @property
    def error(self) -> str:
        """The reason for whoever doesn't poke again."""
        return self.reason.removesuffix("; retrying at the next poke")


def advance(plan: Plan[Any], answers: Sequence[Any] | None) -> tuple[Sequence[Any], StopIteration | None]:
    """Return a plan's next batch, or its end: a StopIteration can't leave a thread."""
    try:
        return plan.send(answers), None  # type: ignore[arg-type]  # None begins it
    except StopIteration as end:
        return (), end


def together(threads: Iterable[Steps[T]], width: int) -> Plan[list[T]]:
    """Run several threads of requests side by side, at most ``width`` of them at a time; return what each returned."""
    waiting, results = iter(threads), []
    running: list[tuple[Steps[T], Any]] = []  # each with the request it wants answered

    def go_on(thread: Steps[T], answer: Any) -> None:
        try:
            running.append((thread, thread.send(answer)))
        except StopIteration as end:
            results.append(end.value)

    while True:
        while len(running) < width and (more := list(islice(waiting, width - len(running)))):
            for thread in more:
                go_on(thread, None)
        if not running:
            return results
        batch, running = running, []
        answers = yield [request for _, request in batch]
        for (thread, _), answer in zip(batch, answers, strict=True):
            go_on(thread, answer)


def alone(thread: Steps[T]) -> Plan[T]:
    """Run one thread of requests."""
    (result,) = yield from together([thread], 1)
    return result
