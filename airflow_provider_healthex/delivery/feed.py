"""Which deliveries have settled and were not announced before: a watermark over all patients of a path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import chain, repeat
from typing import Any, Protocol

from airflow_provider_healthex.delivery.plan import Plan
from airflow_provider_healthex.delivery.rule import ArrivalRule, StoredObject
from airflow_provider_healthex.delivery.template import (
    Kind,
    Target,
    expand,
    first_unclear_separator,
    literal_prefix,
    names_patient,
    parse_key,
    variables,
)
from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: The most deliveries of one event.
MAX_DELIVERIES = 1_000

#: Seconds for which what was announced is remembered by patient. S3 dates an upload of several parts by its beginning:
#: an object may appear with a time this long gone.
LATENESS = 3600

#: The most patients remembered so: the state is one value in the asset state store, where 64 KB are good manners.
MAX_REMEMBERED = 2_000

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

#: Takes whole objects, and half-written ones by their later names.
TakeRows = Callable[[Sequence[StoredObject], Sequence[StoredObject]], None]

#: A delivery's place in the order of announcements: seconds since the epoch, and its patient's digest.
Place = tuple[int, str]


@dataclass(frozen=True)
class Delivery:
    """
    A delivery that has settled.

    :param values: the path's variables.
    :param object_count: objects since the last announcement of this patient.
    :param last_modified: the newest of them (UTC).
    """

    values: Mapping[str, str]
    object_count: int
    last_modified: datetime


@dataclass(frozen=True)
class Announced:
    """
    The announced deliveries: everything up to ``watermark``, and beyond it ``later``.

    One timestamp is not enough: deliveries don't settle in the order of their newest objects, and an event takes only
    so many. The watermark, a pair of (newest object's time, patient's digest), stays before every delivery that isn't
    announced; ``later`` keeps those announced beyond it. If these are more than :data:`MAX_REMEMBERED`, the watermark
    passes the beginning of deliveries that still go on, but not their newest object: each is announced once all the
    same, with too few objects. Patients are digests here, as the state store is no place for ids.

    :param watermark: seconds since the epoch, and a patient's digest.
    :param later: by digest, the newest announced object's time.
    """

    watermark: Place
    later: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def since(cls, moment: datetime) -> Announced:
        """Start behind everything that was modified before a moment."""
        return cls((seconds(moment) - 1, "~"))

    def floor(self, digest: str) -> int:
        """Return the time up to which this patient's objects have been announced."""
        moment, last = self.watermark
        return max(self.later.get(digest, 0), moment if digest <= last else moment - 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"watermark": list(self.watermark), "later": dict(self.later)}

    @classmethod
    def from_dict(cls, value: Any) -> Announced | None:
        """Read the JSON form, or return None for anything else."""
        try:
            moment, digest = value["watermark"]
            later = {str(key): int(newest) for key, newest in value["later"].items()}
            return cls((int(moment), str(digest)), later)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None


@dataclass(slots=True)
class PendingDelivery:
    """
    One patient's objects since their last announcement, in one listing.

    :param state: changes with any of them, half-written ones included; these count nowhere else.
    """

    values: dict[str, str]
    floor: int
    state: int = 0
    count: int = 0
    first: int = 0
    newest: int = 0

    def add(self, row: StoredObject, modified: int, *, whole: bool) -> None:
        """Count an object; one that isn't whole changes the state alone."""
        self.state ^= hash((row.key, row.size, modified, whole))
        if whole:
            self.count += 1
            self.first = min(self.first or modified, modified)
            self.newest = max(self.newest, modified)


class Source(Protocol):
    """How everything under a path is listed, poll after poll, and by whose clock."""

    #: The storage's time at the last listing, in epoch seconds; where that is unknown, what it is at least.
    now: int

    def list(self, target: Target, take: TakeRows) -> Plan[None]:
        """Plan one listing."""

    def quiet_for(self, deliveries: Mapping[str, PendingDelivery]) -> Mapping[str, float]:
        """Return the seconds without a change of each delivery."""


@dataclass(frozen=True)
class Feed:
    """
    The deliveries under a path.

    :param path: the template; ends in ``/``, or is one key a patient.
    :param quiet_period: seconds since a patient's newest object.
    :raises HealthExConfigurationError: where the path can't be read, or doesn't name the patient.
    """

    path: str
    quiet_period: float

    def __post_init__(self) -> None:
        if not names_patient(self.path):
            raise HealthExConfigurationError(
                f"The path {self.path!r} doesn't name the patient, so that deliveries can't be told apart: put "
                "{healthexPatientId} or {externalId} into it."
            )
        separator = first_unclear_separator(self.path)
        if separator is not None:
            raise HealthExConfigurationError(
                f"The path {self.path!r} has {separator!r} between two variables: ids may contain it, so that one "
                "patient's key could be read as another's. Separate variables by '/'."
            )
        glob = next((sign for sign in "*?" if sign in self.path), None)
        if glob:
            raise HealthExConfigurationError(
                f"The path {self.path!r} must not contain {glob!r}: the feed knows no globs. Give the path up to the "
                "patient, ending in '/': everything under it counts."
            )

    def poke(self, announced: Announced, source: Source) -> Plan[tuple[list[Delivery], Announced]]:
        """
        List everything under the path: neither S3 nor SFTP lists by time.

        :param announced: what has been announced.
        :param source: how and by whose clock it is listed.
        :returns: the deliveries to announce now, in the order they settled in, and what has been announced then.
        """
        fresh = yield from self._list(announced, source)
        return self._decide(fresh, announced, source)

    def start(self, source: Source) -> Plan[Announced]:
        """List everything under the path, and return what has been announced where all of it counts as announced."""
        seen = yield from self._list(Announced((0, "~")), source)
        newest = {digest: one.newest for digest, one in seen.items() if one.count}
        return self._advance((0, "~"), newest, {}, source.now)

    def _list(self, announced: Announced, source: Source) -> Plan[dict[str, PendingDelivery]]:
        seen: dict[str, PendingDelivery] = {}
        reader = _Reader(self.path)

        def take(whole: Sequence[StoredObject], partial: Sequence[StoredObject]) -> None:
            for row, is_whole in chain(zip(whole, repeat(True)), zip(partial, repeat(False))):
                values = reader.read(row.key)
                if values is None or not row.is_data:
                    continue
                one, modified = seen.get(reader.digest), seconds(row.last_modified)
                floor = one.floor if one else announced.floor(reader.digest)
                if modified > floor or not is_whole:
                    if one is None:
                        one = seen[reader.digest] = PendingDelivery(values, floor)
                    one.add(row, modified, whole=is_whole)

        yield from source.list(expand_literal(self.path), take)
        return seen

    def _decide(
        self, fresh: Mapping[str, PendingDelivery], announced: Announced, source: Source
    ) -> tuple[list[Delivery], Announced]:
        quiet_for = source.quiet_for(fresh)
        fresh = {digest: one for digest, one in fresh.items() if one.count}  # and not half-written objects alone
        rule = ArrivalRule(quiet_period=self.quiet_period)
        settled = sorted((one.newest, digest) for digest, one in fresh.items() if rule.is_settled(quiet_for[digest]))
        now_announced = settled[:MAX_DELIVERIES]
        deliveries = [
            Delivery(fresh[digest].values, fresh[digest].count, _EPOCH + timedelta(seconds=newest))
            for newest, digest in now_announced
        ]
        newest = {digest: newest for newest, digest in now_announced}
        pending = {digest: one for digest, one in fresh.items() if digest not in newest}
        return deliveries, self._advance(announced.watermark, {**announced.later, **newest}, pending, source.now)

    def _advance(
        self, watermark: Place, later: dict[str, int], pending: Mapping[str, PendingDelivery], now: int
    ) -> Announced:
        """Move the watermark up as far as nothing is lost, and forget what it has passed."""
        # Behind what hasn't been announced: its first object, or it would be counted short.
        limits = [now - int(self.quiet_period) - LATENESS, *(one.first - 1 for one in pending.values())]
        watermark = max(watermark, (min(limits), "~"))
        places = sorted((newest, digest) for digest, newest in later.items() if (newest, digest) > watermark)
        excess = places[: max(0, len(places) - MAX_REMEMBERED)]
        # Behind its newest object, or it would be lost. In S3, that is newer than what has settled; on SFTP, a file may
        # be moved in with an old time.
        first = min(((one.newest, digest) for digest, one in pending.items()), default=None)
        excess = [place for place in excess if first is None or place < first]
        if excess:
            watermark, places = excess[-1], places[len(excess) :]
        return Announced(watermark, {digest: newest for newest, digest in places})


class _Reader:
    """The variables and the digest of keys' patients; a patient's keys follow each other, so the last is remembered."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._names = variables(path)
        self._prefix: str | None = None
        self._values: dict[str, str] = {}
        self.digest = ""

    def read(self, key: str) -> dict[str, str] | None:
        """Return the variables of a key, or None for one that isn't the path's or can be read in two ways."""
        if self._prefix is not None and key.startswith(self._prefix):
            return self._values
        try:
            values = parse_key(self._path, key)
        except HealthExConfigurationError:
            return None
        if values is not None:
            self._values = values
            self._prefix = expand(self._path, values).prefix if self._path.endswith("/") else None
            identity = "\0".join(values[name] for name in self._names)
            self.digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        return values


def expand_literal(path: str) -> Target:
    """Return everything that starts as the path does, before its first variable."""
    prefix = literal_prefix(path)
    return Target(prefix, Kind.PREFIX, prefix)


def seconds(moment: datetime) -> int:
    """Return whole seconds since the epoch."""
    return int(moment.timestamp())
