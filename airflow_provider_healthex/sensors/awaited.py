"""One wait of a sensor: the storage that it pokes, its names in messages, and how its result is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol, TypeVar

from airflow_provider_healthex.delivery import Arrival, ArrivalWait, Plan, StoredObject, Target, Waiting
from airflow_provider_healthex.delivery.plan import Steps

T = TypeVar("T")


class Storage(Protocol):
    """The storage of deliveries, as a worker reaches it."""

    @property
    def bucket(self) -> str | None:
        """The bucket's name, where it is one."""

    @property
    def listing(self) -> Any:
        """How a wait lists this storage: makes a `Listing`."""

    listed: bool

    def uri(self, key: str) -> str:
        """Return a key's URI."""

    def address(self, path: str) -> str:
        """Return a path as messages show it."""

    def hint(self, target: Target) -> Steps[str | None] | None:
        """Plan how to find out why nothing matches a path."""

    def run(self, plan: Plan[T]) -> T | Waiting:
        """Make a plan's requests and return what they show."""

    def put(self, key: str, body: bytes | IO[bytes]) -> None:
        """Write a manifest."""

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what a trigger needs to list this storage."""


#: Makes a sensor's result of who arrived, their objects, and the manifest's URI.
MakeResult = Callable[[Mapping[int, Arrival], Sequence[StoredObject], "str | None"], dict[str, Any]]


@dataclass(frozen=True)
class Awaited:
    """
    One wait, made of a sensor's rendered arguments.

    :param storage: where it pokes.
    :param wait: who and what is awaited.
    :param name: what logs call it.
    :param place: where, as messages show it.
    :param result: makes the sensor's result.
    :param manifest: the key to write a manifest to, or None.
    :param least: patients who must have arrived at the timeout.
    :param needs_objects: whether the result needs the objects.
    :param since: the moment to hand to the wait's next process, where it can't be rendered again.
    """

    storage: Storage
    wait: ArrivalWait
    name: str
    place: str
    result: MakeResult
    manifest: str | None = None
    least: int = 1
    needs_objects: bool = False
    since: str | None = None
