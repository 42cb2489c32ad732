"""
Waiting for deliveries, without I/O: who is awaited, what each poke saw of them, and who has arrived.

One patient is a cohort of one. Where deliveries land is a `Listing` (`s3_listing`, `sftp_listing`): it plans how a poke
lists them, and knows whose clock dates them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from airflow_provider_healthex.delivery.plan import Pause, Plan, Take, Waiting
from airflow_provider_healthex.delivery.rule import ArrivalRule, Seen, StoredObject
from airflow_provider_healthex.delivery.template import Kind, Target, expand, fill, variables
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.moments import to_text, whole_seconds


@dataclass(frozen=True)
class Patient:
    """
    One awaited patient.

    :param patient_id: HealthEx's id; None where a path without the patient is awaited.
    :param requested_at: from when an object is fresh, UTC.
    :param external_id: the caller's own id, where the path needs it.
    """

    patient_id: str | None
    requested_at: datetime
    external_id: str | None = None

    @property
    def values(self) -> dict[str, str | None]:
        """The path variables that differ from patient to patient."""
        return {"healthexPatientId": self.patient_id, "externalId": self.external_id}


@dataclass(frozen=True)
class Expectation:
    """
    The awaited deliveries: patients, paths, `requested_at` and the rule of arrival.

    :param paths: path templates; each must have its objects.
    :param values: the path variables that all patients share.
    :param patients: in the order of results.
    :param rule: when a delivery has arrived.
    :param wildcard: whether the paths are globs.
    """

    paths: tuple[str, ...]
    values: Mapping[str, str | None]
    patients: tuple[Patient, ...]
    rule: ArrivalRule
    wildcard: bool = False

    def targets(self, patient: Patient) -> tuple[Target, ...]:
        """Return where a patient's delivery lands."""
        return tuple(expand(path, {**self.values, **patient.values}, wildcard=self.wildcard) for path in self.paths)

    def shared_path(self) -> str:
        """Return the first path with the values that all patients share."""
        return fill(self.paths[0], self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, for a trigger's arguments: of each patient the id, seconds, and no more."""
        earliest = min((whole_seconds(each.requested_at) for each in self.patients), default=None)
        named = any("externalId" in variables(path) for path in self.paths)
        return {
            "paths": list(self.paths),
            "values": dict(self.values),
            "wildcard": self.wildcard,
            "rule": asdict(self.rule),
            "requested_at": to_text(earliest) if earliest else None,
            "patients": [
                [
                    each.patient_id,
                    int((whole_seconds(each.requested_at) - earliest).total_seconds()) if earliest else 0,
                    *([each.external_id] if named else []),
                ]
                for each in self.patients
            ],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Expectation:
        """Read the JSON form."""
        patients = []
        for patient_id, seconds, *external_id in value["patients"]:
            requested_at = datetime.fromisoformat(value["requested_at"]) + timedelta(seconds=seconds)
            patients.append(Patient(patient_id, requested_at, *external_id))
        return cls(
            tuple(value["paths"]),
            value["values"],
            tuple(patients),
            ArrivalRule(**value["rule"]),
            value["wildcard"],
        )


class Poke(Protocol):
    """One listing of some patients' objects."""

    def list(self, indices: Sequence[int], take: Take) -> Plan[None]:
        """Plan the requests; ``take`` gets the objects as they come."""

    def is_fresh(self, index: int, row: StoredObject, floor: datetime) -> bool:
        """Return whether a patient's object was written since the request."""

    def quiet_for(self, index: int, fresh: Sequence[StoredObject], newest: datetime | None) -> float:
        """Return for how many seconds a patient's delivery has not changed; called once for each, at the end."""

    def is_later_than(self, moment: datetime) -> bool:
        """Return whether the listing began after a moment of the storage's clock."""

    def obstacle(self, index: int) -> str | None:
        """Return what prevented seeing a patient's objects."""

    def remark(self) -> str:
        """Return what a person should know of this listing, or an empty text."""

    def state(self, index: int) -> object:
        """Return a value that changes when a patient's fresh objects change."""


class Listing(Protocol):
    """How the objects of a wait are listed, poke after poke."""

    #: Seconds until a second listing must show the same; None where objects are whole or not there.
    confirmation: float | None
    #: Whether a poke wants to see all fresh objects of a patient when it ends.
    needs_objects: bool

    def start(self) -> Poke:
        """Start a poke."""

    def to_dict(self) -> dict[str, Any]:
        """Return what pokes have shown so far, for another process."""

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Continue with what another process of this wait saw."""


@dataclass(frozen=True)
class Arrival:
    """A patient's delivery that has arrived, by its fresh objects: times are the storage's, in UTC."""

    object_count: int
    total_bytes: int
    first_modified: datetime
    last_modified: datetime


class _Tally:
    """One patient's objects in one poke, counted."""

    __slots__ = ("first", "last", "objects", "paths", "quiet_for", "rows", "total_bytes")

    def __init__(self, paths: int) -> None:
        self.paths = [Seen() for _ in range(paths)]
        self.objects = self.total_bytes = 0
        self.first: datetime | None = None
        self.last: datetime | None = None
        self.quiet_for = 0.0
        self.rows: list[StoredObject] = []

    def add(self, fresh: Sequence[StoredObject], *, keep: bool) -> None:
        if not fresh:
            return
        first, last = min(row.last_modified for row in fresh), max(row.last_modified for row in fresh)
        self.objects += len(fresh)
        self.total_bytes += sum(row.size for row in fresh)
        self.first = first if self.first is None else min(self.first, first)
        self.last = last if self.last is None else max(self.last, last)
        if keep:
            self.rows += fresh

    def arrival(self) -> Arrival:
        assert self.first is not None
        assert self.last is not None
        return Arrival(self.objects, self.total_bytes, self.first, self.last)


class ArrivalWait:
    """
    One wait, over all its pokes. A patient who has arrived stays so, and isn't listed again.

    :param expectation: who and what is awaited.
    :param listing: makes the listing of an expectation and its targets.
    :raises HealthExConfigurationError: a path can't be made, or two patients have the same.
    """

    def __init__(
        self, expectation: Expectation, listing: Callable[[Expectation, Sequence[tuple[Target, ...]]], Listing]
    ) -> None:
        self.expectation = expectation
        self.targets = [expectation.targets(patient) for patient in expectation.patients]
        self.arrived: dict[int, Arrival] = {}  # by the patient's position
        #: The positions of the patients who haven't arrived.
        self.missing = list(range(len(self.targets)))
        self._floors = [expectation.rule.floor(patient.requested_at) for patient in expectation.patients]
        self._remark = ""
        self._refuse_twins()
        self.listing = listing(expectation, self.targets)

    def poke(self, take: Take | None = None) -> Plan[Waiting | None]:
        """
        Plan one check of the patients who haven't arrived.

        :param take: gets the fresh objects that the check saw.
        :returns: why the wait goes on, or None where all have arrived.
        """
        tallies, arrived, reason = yield from self._check(self.missing, take, must_settle=True)
        if arrived:
            self.arrived.update(arrived)
            self.missing = [index for index in self.missing if index not in arrived]
        if len(self.arrived) == len(self.targets):
            return None
        if reason:
            return Waiting(reason + self._remark)
        return Waiting(self._reason(tallies) + self._remark, self._unmatched(tallies))

    def collect(self, indices: Iterable[int], take: Take) -> Plan[dict[int, Arrival]]:
        """
        Plan one more listing of patients whom another process saw arrive, for what it didn't hand over.

        :param take: gets their fresh objects.
        :returns: what is there of each; a patient without a delivery any more is missing in it.
        """
        # Files may grow under their final names: another one may have begun since.
        must_settle = self.listing.confirmation is not None
        _, arrived, _ = yield from self._check(list(indices), take, must_settle=must_settle)
        return arrived

    def _check(
        self, indices: Sequence[int], take: Take | None, *, must_settle: bool
    ) -> Plan[tuple[dict[int, _Tally], dict[int, Arrival], str | None]]:
        seconds = self.listing.confirmation
        # Of two listings that must agree, the second one counts.
        tallies, poke = yield from self._list(indices, take if seconds is None else None)
        arrived, self._remark = self._judge(tallies, must_settle=must_settle), poke.remark()
        if not arrived or seconds is None:
            return tallies, arrived, self._obstacle(poke, tallies)
        yield [Pause(seconds)]
        again, second = yield from self._list(sorted(arrived), take)
        confirmed = self._judge(again, must_settle=must_settle)
        same = {index: one for index, one in confirmed.items() if poke.state(index) == second.state(index)}
        tallies.update(again)
        changing = sum(tallies[index].objects for index in confirmed if index not in same)
        reason = f"{changing:,} fresh files, still changing between two listings" if changing else None
        return tallies, same, reason or self._obstacle(second, again)

    def _list(self, indices: Sequence[int], sink: Take | None) -> Plan[tuple[dict[int, _Tally], Poke]]:
        rule, poke, keep = self.expectation.rule, self.listing.start(), self.listing.needs_objects
        tallies = {index: _Tally(len(self.targets[index])) for index in indices}

        def take(index: int, rows: Sequence[StoredObject]) -> None:
            tally, floor = tallies[index], self._floors[index]
            found = [
                seen.add(rows, target, rule.marker, lambda row: poke.is_fresh(index, row, floor))
                for target, seen in zip(self.targets[index], tally.paths, strict=True)
            ]
            # An object of two overlapping paths is counted once.
            fresh = found[0] if len(found) == 1 else list({row.key: row for rows in found for row in rows}.values())
            tally.add(fresh, keep=keep)
            if fresh and sink:
                sink(index, fresh)

        yield from poke.list(indices, take)
        for index, tally in tallies.items():
            tally.quiet_for = poke.quiet_for(index, tally.rows, tally.last)
            for seen in tally.paths:
                seen.accept_marker(poke.is_later_than)
        return tallies, poke

    def _judge(self, tallies: Mapping[int, _Tally], *, must_settle: bool) -> dict[int, Arrival]:
        rule = self.expectation.rule
        return {
            index: tally.arrival()
            for index, tally in tallies.items()
            if all(map(rule.is_enough, tally.paths)) and (rule.is_settled(tally.quiet_for) or not must_settle)
        }

    def _obstacle(self, poke: Poke, tallies: Mapping[int, _Tally]) -> str | None:
        return poke.obstacle(0) if len(self.targets) == 1 and tallies else None

    def _unmatched(self, tallies: Mapping[int, _Tally]) -> tuple[int, ...]:
        empty = (
            position
            for position in range(len(self.expectation.paths))
            if tallies and not any(one.paths[position].fresh or one.paths[position].stale for one in tallies.values())
        )
        return tuple(empty)

    def _reason(self, tallies: Mapping[int, _Tally]) -> str:
        rule, total, arrived = self.expectation.rule, len(self.targets), len(self.arrived)
        if total == 1:
            return self._reason_of_one(tallies[0])
        begun = sum(1 for index, one in tallies.items() if one.objects and index not in self.arrived)
        awaited = f"waiting for their {rule.marker}" if rule.marker else "settling"
        without = total - arrived - begun
        return (
            f"{arrived:,} of {total:,} arrived, {begun:,} {awaited}, {without:,} without a fresh object under "
            f"{self.expectation.paths[0]}"
        )

    def _reason_of_one(self, tally: _Tally) -> str:
        rule = self.expectation.rule
        for target, seen in zip(self.targets[0], tally.paths, strict=True):
            where = f"{'at' if target.kind is Kind.KEY else 'under'} {target.template}"
            if not seen.fresh and seen.newest_stale is None:
                return f"no objects {where}"
            if not seen.fresh:
                requested_at = self.expectation.patients[0].requested_at
                return (
                    f"{_objects(seen.stale)} {where}, newest {_iso(seen.newest_stale)} is older than the request at "
                    f"{_iso(requested_at)}"
                )
            if seen.fresh < rule.min_objects:
                return f"{seen.fresh} of at least {rule.min_objects} fresh objects {where}"
            if rule.marker and not seen.marked:
                return f"{_objects(seen.fresh, 'fresh ')} {where}, no fresh {rule.marker} yet"
        left = rule.quiet_period - tally.quiet_for
        return f"{_objects(tally.objects, 'fresh ')}, settling: {left:.0f} s of {rule.quiet_period:g} s left"

    def _refuse_twins(self) -> None:
        twins = len(self.targets) - len({tuple((one.prefix, one.pattern) for one in own) for own in self.targets})
        if twins:
            raise HealthExConfigurationError(
                f"{twins} of the {len(self.targets)} patients have the same path as another, so that their deliveries "
                f"can't be told apart: put {{healthexPatientId}} into {self.expectation.paths[0]!r}, or give each "
                "patient an external id of its own."
            )


def _objects(count: int, adjective: str = "") -> str:
    return f"{count:,} {adjective}object{'' if count == 1 else 's'}"


def _iso(moment: datetime | None) -> str:
    return moment.replace(microsecond=0).isoformat() if moment else "?"
