"""The newest delivered object of each patient: what was delivered lately needn't be requested again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from airflow_provider_healthex.delivery.arrival import ArrivalWait
from airflow_provider_healthex.delivery.plan import Plan
from airflow_provider_healthex.delivery.rule import StoredObject


@dataclass(frozen=True)
class Newest:
    """
    A patient's newest data object.

    :param last_modified: UTC, by the storage's clock.
    :param age: seconds since then, at least.
    """

    last_modified: datetime
    age: float


@dataclass
class NewestObjects:
    """
    What one listing showed of some patients, by their positions.

    :param found: of those with an object.
    :param hidden: why a patient's objects couldn't be seen.
    :param remark: what a person should know of the listing, or empty.
    """

    found: dict[int, Newest] = field(default_factory=dict)
    hidden: dict[int, str] = field(default_factory=dict)
    remark: str = ""


def newest_objects(wait: ArrivalWait) -> Plan[NewestObjects]:
    """
    Plan one listing of a wait's patients, as a poke would.

    :param wait: with ``requested_at`` before every delivery that counts.
    """
    listing, seen = wait.listing, NewestObjects()
    newest: dict[int, datetime] = {}
    kept: dict[int, list[StoredObject]] = {}

    def take(index: int, rows: Sequence[StoredObject]) -> None:
        own = [row for row in rows if row.is_data and any(target.matches(row.key) for target in wait.targets[index])]
        if own:
            latest = max(row.last_modified for row in own)
            newest[index] = max(newest.get(index, latest), latest)
        if listing.needs_objects:
            kept.setdefault(index, []).extend(own)

    poke = listing.start()
    yield from poke.list(range(len(wait.targets)), take)
    for index in range(len(wait.targets)):
        obstacle = poke.obstacle(index)
        if obstacle:
            seen.hidden[index] = obstacle
        elif index in newest:
            age = poke.quiet_for(index, kept.get(index, []), newest[index])
            seen.found[index] = Newest(newest[index], age)
    seen.remark = poke.remark()
    return seen
