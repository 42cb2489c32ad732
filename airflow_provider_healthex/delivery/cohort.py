"""Deciding arrival for many patients: each by its own baseline and its own quiet, out of one listing for all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from airflow_provider_healthex.delivery.arrival import StoredObject, Waiting
from airflow_provider_healthex.delivery.listing import Look, Rows, utc_now
from airflow_provider_healthex.delivery.skipscan import Span, are_disjoint, scan_all, skip_scan
from airflow_provider_healthex.delivery.template import (
    Kind,
    Target,
    expand,
    fill,
    literal_prefix,
    names_patient,
    surroundings,
    variables,
)
from airflow_provider_healthex.exceptions import HealthExConfigurationError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """
    One patient of a cohort.

    :param patient_id: HealthEx's id.
    :param offset: seconds from the cohort's earliest baseline to this patient's.
    :param external_id: the id your side gave the patient, where the path needs it.
    """

    patient_id: str
    offset: float
    external_id: str | None = None


@dataclass(frozen=True)
class CohortExpectation:
    """
    What counts as each patient's delivery; like :class:`Expectation`, with one path for all.

    :param path: the template that names the patient.
    :param wildcard: whether the path is a glob.
    :param values: the values of the variables that all patients share.
    :param since: the earliest baseline (UTC).
    :param members: the patients.
    """

    path: str
    values: Mapping[str, str | None]
    since: datetime
    members: tuple[Member, ...]
    wildcard: bool = False
    clock_skew: float = 2
    min_objects: int = 1
    quiet_period: float = 300
    marker: str | None = None

    def target(self, member: Member) -> Target:
        """Return where a patient's delivery lands."""
        ids = {"healthexPatientId": member.patient_id, "externalId": member.external_id}
        return expand(self.path, {**self.values, **ids}, wildcard=self.wildcard)

    def floor(self, member: Member) -> datetime:
        """Return the oldest modification time that counts for a patient; S3's times are whole seconds."""
        return (self.since + timedelta(seconds=member.offset)).replace(microsecond=0) - timedelta(
            seconds=self.clock_skew
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, for a trigger's arguments: of each patient its id and seconds, and no more."""
        named = "externalId" in variables(self.path)
        members = [
            [member.patient_id, member.offset, *([member.external_id] if named else [])] for member in self.members
        ]
        return {**_shallow(self), "since": self.since.isoformat(), "members": members}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CohortExpectation:
        """Read the JSON form."""
        members = tuple(Member(*member) for member in value["members"])
        return cls(**{**value, "since": datetime.fromisoformat(value["since"]), "members": members})


def _shallow(expectation: CohortExpectation) -> dict[str, Any]:
    names = ("path", "wildcard", "clock_skew", "min_objects", "quiet_period", "marker")
    return {**{name: getattr(expectation, name) for name in names}, "values": dict(expectation.values)}


@dataclass(frozen=True)
class Settled:
    """A patient whose delivery has arrived: ``object_count`` fresh objects, the newest of ``last_modified`` (UTC)."""

    object_count: int
    last_modified: datetime


@dataclass(frozen=True)
class AllSettled:
    """Every patient's delivery has arrived."""


@dataclass(slots=True)
class _Seen:
    """What one look saw of a patient so far: numbers, so that memory is that of the patients, not of the objects."""

    fresh: int = 0
    newest: datetime | None = None
    marked: bool = False


class CohortWait:
    """
    The decision over the looks of one wait. A patient who has settled stays so and isn't listed again.

    :param expectation: what counts.
    :raises HealthExConfigurationError: where a path can't be made, or two patients have the same.
    """

    def __init__(self, expectation: CohortExpectation) -> None:
        self.expectation = expectation
        self.targets = tuple(expectation.target(member) for member in expectation.members)
        self.settled: dict[int, Settled] = {}  # by the member's position
        self._floors = tuple(expectation.floor(member) for member in expectation.members)
        self._refuse_twins()
        spans = [Span(target.prefix, target.kind is Kind.KEY, index) for index, target in enumerate(self.targets)]
        self._spans = spans if are_disjoint(spans) else None
        self._owners = None if self._spans is not None else _Owners(expectation, self.targets)
        self._warned = False

    @property
    def missing(self) -> list[int]:
        """The positions of those who haven't settled."""
        return [index for index in range(len(self.targets)) if index not in self.settled]

    def look(self, clock: Callable[[], datetime] = utc_now) -> Look[AllSettled | Waiting]:
        """Look once at every patient who hasn't settled."""
        seen: dict[int, _Seen] = {}

        def take(index: int, rows: Rows) -> None:
            self._tally(seen.setdefault(index, _Seen()), index, rows)

        now = (yield from self._scan(self.missing, take)) or clock()
        for index, one in seen.items():
            settled = self._judge(one, now)
            if settled:
                self.settled[index] = settled
        if len(self.settled) == len(self.targets):
            return AllSettled()
        return Waiting(self._reason(seen), () if seen or self.settled else (0,))

    def collect(
        self, indices: Iterable[int], sink: Callable[[int, Iterator[StoredObject]], None]
    ) -> Look[dict[int, Settled]]:
        """
        List the fresh objects of some patients once more.

        :param indices: the patients' positions.
        :param sink: called with a patient's position and some of its objects, which are not kept.
        :returns: what there is of each; a patient without fresh objects is missing in it.
        """
        seen: dict[int, _Seen] = {}

        def take(index: int, rows: Rows) -> None:
            fresh = self._tally(seen.setdefault(index, _Seen()), index, rows)
            sink(index, (StoredObject(r["Key"], r["LastModified"], r["Size"], r.get("ETag", "")) for r in fresh))

        yield from self._scan(indices, take)
        return {index: Settled(one.fresh, one.newest) for index, one in seen.items() if one.newest}

    def _scan(self, indices: Iterable[int], take: Callable[[int, Rows], None]) -> Look[datetime | None]:
        if self._spans is not None:
            return (yield from skip_scan([self._spans[index] for index in indices], take))
        wanted, owners = set(indices), self._owners
        assert owners is not None
        shared = 0

        def attribute(rows: Rows) -> None:
            nonlocal shared
            groups: dict[int, list[dict[str, Any]]] = {}
            for row in rows:
                found = owners.of(row["Key"])
                if len(found) == 1 and found[0] in wanted:
                    groups.setdefault(found[0], []).append(row)
                shared += len(found) > 1
            for index, own in groups.items():
                take(index, own)

        now = yield from scan_all(owners.prefix, attribute)
        if shared and not self._warned:
            self._warned = True
            log.warning(
                "%s skipped: the path %s fits several patients of the cohort there. Separate its variables by '/', and "
                "put no '*' where an id could stand as well.",
                f"{shared:,} object{'s' if shared > 1 else ''}",
                self.expectation.path,
            )
        return now

    def _tally(self, seen: _Seen, index: int, rows: Rows) -> Rows:
        """Count what is fresh and of the patient's own target among some rows, and return it."""
        target, floor, marker = self.targets[index], self._floors[index], self.expectation.marker
        fresh: list[dict[str, Any]] = [row for row in rows if row["LastModified"] >= floor]
        if marker:
            marks = {row["Key"] for row in fresh if target.holds_marker(row["Key"], marker)}
            seen.marked = seen.marked or bool(marks)
            fresh = [row for row in fresh if row["Key"] not in marks]
        # A console's folder is no delivery.
        fresh = [row for row in fresh if target.matches(row["Key"]) and (row["Size"] or row["Key"][-1] != "/")]
        if fresh:
            newest = max(row["LastModified"] for row in fresh)
            seen.fresh += len(fresh)
            seen.newest = newest if seen.newest is None or newest > seen.newest else seen.newest
        return fresh

    def _judge(self, seen: _Seen, now: datetime) -> Settled | None:
        expectation = self.expectation
        if seen.newest is None or seen.fresh < expectation.min_objects:
            return None
        if expectation.marker:
            return Settled(seen.fresh, seen.newest) if seen.marked else None
        quiet = (now - seen.newest).total_seconds() >= expectation.quiet_period
        return Settled(seen.fresh, seen.newest) if quiet else None

    def _reason(self, seen: Mapping[int, _Seen]) -> str:
        total, arrived = len(self.targets), len(self.settled)
        begun = sum(1 for index, one in seen.items() if one.fresh and index not in self.settled)
        awaited = f"their {self.expectation.marker}" if self.expectation.marker else "quiet"
        return (
            f"{arrived:,} of {total:,} arrived, {begun:,} begun and waiting for {awaited}, "
            f"{total - arrived - begun:,} without a fresh object under {self.expectation.path}"
        )

    def _refuse_twins(self) -> None:
        twins = len(self.targets) - len({(target.prefix, target.pattern) for target in self.targets})
        if twins:
            raise HealthExConfigurationError(
                f"{twins} of the {len(self.targets)} patients have the same path as another, so that their deliveries "
                f"can't be told apart: put {{healthexPatientId}} into bucket_key={self.expectation.path!r}, or give "
                "each patient an external id of its own."
            )


class _Owners:
    """
    The patients that a key can be of, where the path doesn't tell where a patient's keys begin.

    A key is compared with the cohort's own ids, and not parsed: a glob's stars could stand for an id as well.
    """

    def __init__(self, expectation: CohortExpectation, targets: Sequence[Target]) -> None:
        path, self._marker, self._targets = fill(expectation.path, expectation.values), expectation.marker, targets
        # A marker need not match the glob, but lies where matching keys do.
        if self._marker and not names_patient("".join(path.rpartition("/")[:2]) + "*"):
            raise HealthExConfigurationError(
                f"marker={self._marker!r} with bucket_key={expectation.path!r}: a marker in a folder of several "
                "patients is nobody's. Put the patient's variable before the last '/', or give no marker."
            )
        self.prefix = literal_prefix(path, wildcard=expectation.wildcard)
        self._name, self._before, self._after = surroundings(path, wildcard=expectation.wildcard)
        self._by_id: dict[str, list[int]] = {}
        for index, member in enumerate(expectation.members):
            self._by_id.setdefault(_identity(member)[self._name] or "", []).append(index)
        self._lengths = sorted({len(one) for one in self._by_id})

    def of(self, key: str) -> list[int]:
        """Return the positions of the patients whose path a key matches."""
        return [index for index in self._candidates(key) if self._holds(self._targets[index], key)]

    def _holds(self, target: Target, key: str) -> bool:
        return target.matches(key) or bool(self._marker and target.holds_marker(key, self._marker))

    def _candidates(self, key: str) -> set[int]:
        """Return the patients whose id stands in the key, between what the path has beside it."""
        found: set[int] = set()
        start = key.find(self._before)
        while start >= 0:
            begin = start + len(self._before)
            for length in self._lengths:
                if key.startswith(self._after, begin + length):
                    found.update(self._by_id.get(key[begin : begin + length], ()))
            start = key.find(self._before, start + 1) if self._before else -1
        return found


def _identity(member: Member) -> dict[str, str | None]:
    return {"healthexPatientId": member.patient_id, "externalId": member.external_id}
