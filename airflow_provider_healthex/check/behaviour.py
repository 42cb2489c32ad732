"""Infers from each patient's objects how deliveries come: their number, pauses, names and marker."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median

from airflow_provider_healthex.check.patterns import MOMENTS, KnownIds, Reader, kinds, readable
from airflow_provider_healthex.check.words import plural
from airflow_provider_healthex.delivery import StoredObject

#: Objects at most this far apart are of one delivery (seconds).
SURELY_WITHIN = 15 * 60
#: Objects further apart than this are of two deliveries: the sensor's own timeout. Between the two it is unclear.
SURELY_BETWEEN = 6 * 60 * 60
#: Deliveries of several objects, and patients they are of, on which a number about pauses must rest.
ENOUGH_DELIVERIES, ENOUGH_PATIENTS = 5, 3

#: What a file that ends a delivery is called elsewhere.
_MARKER_NAMES = frozenset({"_success", "success", "done", "complete", "completed", "finished", "ready", "end", "eof"})
_SHOWN_NAMES = 8

NEW_NAMES, OVERWRITTEN, OPEN = "new names", "overwritten", "open"


@dataclass(frozen=True)
class Delivery:
    """
    Objects of one patient that came together.

    :param rows: by time.
    """

    patient: str
    rows: tuple[StoredObject, ...]

    @property
    def seconds(self) -> float:
        """From the first object to the last."""
        return (self.rows[-1].last_modified - self.rows[0].last_modified).total_seconds()

    @property
    def longest_pause(self) -> float:
        """Seconds between two objects that follow each other."""
        return max((_gap(*pair) for pair in pairwise(self.rows)), default=0.0)


@dataclass(frozen=True)
class Marker:
    """
    A name that may end a delivery.

    :param name: as ``marker`` takes it.
    :param deliveries: in how many it came last.
    :param is_likely: whether it is also empty, or called as such files are.
    """

    name: str
    deliveries: int
    is_likely: bool


@dataclass(frozen=True)
class Behaviour:
    """
    What the deliveries of a path have in common.

    :param deliveries: how many were found.
    :param patients: of how many patients.
    :param several: deliveries of more than one object: the only ones that show pauses.
    :param several_patients: patients of those.
    :param objects: how many deliveries have how many objects.
    :param seconds: from the first to the last object of a delivery, at most.
    :param longest_pause: seconds inside a delivery; None where no delivery has two objects.
    :param unclear: pauses too long for one delivery and too short for two.
    :param naming: ``new names``, ``overwritten``, or ``open``.
    :param naming_reason: on what that rests.
    :param names: patterns of names that more than one patient has, and in how many deliveries each is.
    :param other_names: names that one patient alone has, or that are too many to show.
    :param marker: a name that always comes last.
    :param ages: seconds since each patient's newest object: the least, the median, the most.
    :param sizes: bytes of an object: the least, the median, the most.
    """

    deliveries: int
    patients: int
    several: int
    several_patients: int
    objects: Mapping[int, int]
    seconds: float
    longest_pause: float | None
    unclear: int
    naming: str
    naming_reason: str
    names: tuple[tuple[str, int], ...]
    other_names: int
    marker: Marker | None
    ages: tuple[float, float, float]
    sizes: tuple[int, float, int]

    @property
    def shows_pauses(self) -> bool:
        """Whether enough was seen for a number of seconds."""
        return not self.unclear and self.several >= ENOUGH_DELIVERIES and self.several_patients >= ENOUGH_PATIENTS

    @property
    def fixed_count(self) -> int | None:
        """The number of objects of every delivery, where it is always the same and enough were seen."""
        if len(self.objects) == 1 and self.deliveries >= ENOUGH_DELIVERIES and self.patients >= ENOUGH_PATIENTS:
            return next(iter(self.objects))
        return None


def find_behaviour(rows: Mapping[str, Sequence[StoredObject]], ids: KnownIds, now: datetime) -> Behaviour | None:
    """
    Find what deliveries have in common.

    :param rows: the objects of each patient.
    :param ids: what to leave out of names.
    :param now: the store's clock, when it was listed.
    :returns: None where there are no objects.
    """
    rows = {patient: sorted(each, key=_by_time) for patient, each in rows.items() if each}
    if not rows:
        return None
    reader = _Names(ids)
    unclear = 0
    parts: dict[str, list[Delivery]] = {}
    for patient, each in rows.items():
        parts[patient], doubts = _deliveries(patient, each, reader)
        unclear += doubts
    naming, reason = _naming(parts, reader)
    # Where names are written over, an older part is what the last delivery left: no whole delivery.
    known = [each for found in parts.values() for each in (found if naming == NEW_NAMES else found[-1:])]
    several = [each for each in known if len(each.rows) > 1]
    names, others = _names(known, reader)
    ages = sorted((now - each[-1].last_modified).total_seconds() for each in rows.values())
    sizes = sorted(row.size for each in rows.values() for row in each)
    return Behaviour(
        deliveries=len(known),
        patients=len(rows),
        several=len(several),
        several_patients=len({each.patient for each in several}),
        objects=dict(sorted(Counter(len(each.rows) for each in known).items())),
        seconds=max(each.seconds for each in known),
        longest_pause=max((each.longest_pause for each in several), default=None),
        unclear=unclear,
        naming=naming,
        naming_reason=reason,
        names=names,
        other_names=others,
        marker=_marker(several, len(known), reader),
        ages=(ages[0], median(ages), ages[-1]),
        sizes=(sizes[0], median(sizes), sizes[-1]),
    )


class _Names:
    """Patterns of keys, and what in them is of one delivery."""

    def __init__(self, ids: KnownIds) -> None:
        self._reader = Reader(ids)

    def pattern(self, key: str) -> str:
        """Return what stands after the patient in a key; for a date before the patient also that."""
        shapes = [segment.shape for segment in self._reader.segments(key)]
        own = next((at for at, shape in enumerate(shapes) if _is_of_patient(shape)), 0)
        before = [at for at, shape in enumerate(shapes[:own]) if set(kinds(shape)) & MOMENTS]
        start = before[0] if before else own + (own < len(shapes) - 1)
        return "/".join(shapes[start:])

    def folder_token(self, key: str) -> tuple[str, ...]:
        """Return the dates and ids among a key's folders, which one delivery's objects share."""
        segments = self._reader.segments(key)[:-1]
        return tuple(
            value
            for segment in segments
            for kind, value in zip(kinds(segment.shape), segment.values, strict=True)
            if kind != "n"
        )

    def base(self, key: str) -> str:
        """Return the pattern of a key's last segment."""
        return self._reader.segments(key)[-1].shape


def _is_of_patient(shape: str) -> bool:
    return "{healthexPatientId}" in shape or "{externalId}" in shape


def _by_time(row: StoredObject) -> tuple[datetime, str]:
    return row.last_modified, row.key


def _gap(earlier: StoredObject, later: StoredObject) -> float:
    return (later.last_modified - earlier.last_modified).total_seconds()


def _deliveries(patient: str, rows: Sequence[StoredObject], reader: _Names) -> tuple[list[Delivery], int]:
    """Split a patient's objects into deliveries, and count the pauses that could be either."""
    deliveries, current, unclear = [], [rows[0]], 0
    for earlier, later in pairwise(rows):
        gap = _gap(earlier, later)
        same = gap <= SURELY_WITHIN
        if SURELY_WITHIN < gap <= SURELY_BETWEEN:
            tokens = reader.folder_token(earlier.key), reader.folder_token(later.key)
            same = tokens[0] == tokens[1]
            unclear += not any(tokens)
        if not same:
            deliveries.append(Delivery(patient, tuple(current)))
            current = []
        current.append(later)
    return [*deliveries, Delivery(patient, tuple(current))], unclear


def _naming(parts: Mapping[str, Sequence[Delivery]], reader: _Names) -> tuple[str, str]:
    """Return whether a delivery has names of its own, and why. One listing never shows an overwrite."""
    again = 0
    for deliveries in parts.values():
        seen: set[str] = set()
        for delivery in deliveries:
            patterns = {reader.pattern(row.key) for row in delivery.rows}
            if seen & patterns:
                again += 1
                break
            seen |= patterns
    if again > 1:
        return NEW_NAMES, f"{plural(again, 'patient')} with more than one delivery, each under names of its own"
    found = {kind for each in parts.values() for part in each for row in part.rows for kind in _kinds(row, reader)}
    if found - {"n"}:
        what = " or ".join(sorted("a date" if kind in MOMENTS else "an id" for kind in {*found} - {"n"}))
        what = "a date" if "an id" not in what else "an id" if "a date" not in what else "a date or an id"
        seen_in = "one patient has" if again else "no patient has"
        return (
            OPEN,
            f"names hold {what}, so each delivery is likely to have new ones; {seen_in} two deliveries to show it",
        )
    return OPEN, "names are fixed, so a delivery is likely to be written over the last one; a listing can't show it"


def _kinds(row: StoredObject, reader: _Names) -> list[str]:
    return kinds(reader.pattern(row.key))


def _names(deliveries: Sequence[Delivery], reader: _Names) -> tuple[tuple[tuple[str, int], ...], int]:
    counts: Counter[str] = Counter()
    patients: dict[str, set[str]] = defaultdict(set)
    for delivery in deliveries:
        for pattern in {reader.pattern(row.key) for row in delivery.rows}:
            counts[pattern] += 1
            patients[pattern].add(delivery.patient)
    # A name that one patient alone has may say something about that patient.
    shared = [(readable(name), count) for name, count in counts.most_common() if len(patients[name]) > 1]
    return tuple(shared[:_SHOWN_NAMES]), len(counts) - len(shared[:_SHOWN_NAMES])


def _marker(several: Sequence[Delivery], known: int, reader: _Names) -> Marker | None:
    """Find a name that ends every delivery; never one of a numbered row, whose last number may differ tomorrow."""
    if len(several) < known or len({each.patient for each in several}) < ENOUGH_PATIENTS:
        return None
    for name in _last_names(several, reader):
        last = [_marks(name, delivery) for delivery in several]
        if all(last) and sum(row.last_modified > before.last_modified for row, before in filter(None, last)) >= max(
            ENOUGH_PATIENTS, len(several) / 2
        ):
            sizes = {row.size for row, _ in filter(None, last)}
            stem = name.lower().strip("._").partition(".")[0]
            return Marker(name, len(several), sizes == {0} or name.lower() in _MARKER_NAMES or stem in _MARKER_NAMES)
    return None


def _last_names(several: Sequence[Delivery], reader: _Names) -> Iterator[str]:
    first = several[0]
    for row in reversed(first.rows):
        if row.last_modified < first.rows[-1].last_modified:
            return
        name, shape = row.key.rpartition("/")[2], reader.base(row.key)
        alike = sum(reader.base(other.key) == shape for other in first.rows)
        if alike > 1:
            continue
        if not kinds(shape) and "{" not in shape:
            yield name
        elif "." in shape:
            yield f".{name.rpartition('.')[2]}"


def _marks(name: str, delivery: Delivery) -> tuple[StoredObject, StoredObject] | None:
    """Return the marker's object and the last of the others, where there is one marker and nothing after it."""
    found = [row for row in delivery.rows if _is_named(row.key, name)]
    others = [row for row in delivery.rows if not _is_named(row.key, name)]
    if len(found) != 1 or not others or found[0].last_modified < others[-1].last_modified:
        return None
    return found[0], others[-1]


def _is_named(key: str, name: str) -> bool:
    base = key.rpartition("/")[2]
    return base.endswith(name) if name.startswith(".") else base == name


def whole_deliveries(
    rows: Mapping[str, Sequence[StoredObject]], cut: Iterable[str]
) -> dict[str, Sequence[StoredObject]]:
    """Leave out the patients at whose keys a listing was cut off: the rest of theirs is not known."""
    left_out = set(cut)
    return {patient: each for patient, each in rows.items() if patient not in left_out}
