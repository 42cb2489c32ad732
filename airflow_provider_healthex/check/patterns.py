"""Finds ids, dates and numbers in keys, so that keys of different patients and days compare as equal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

#: Ids shorter than this are found as a whole segment or a whole file stem only: "2026" inside a name is no id.
SHORTEST_INSIDE = 6

#: Stand around the name of what was replaced. Private-use characters: no real key has them.
OPEN, CLOSE = "\ue000", "\ue001"

#: Kinds of text that belong to one moment: never a constant part of a path, even where one alone was seen.
MOMENTS = frozenset({"time", "date", "year", "month", "day"})

_RUN = re.compile(r"[A-Za-z0-9]+")
_KINDS = (
    ("uuid", r"(?<![0-9A-Za-z])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![0-9A-Za-z])"),
    ("time", r"(?<!\d)(?:19|20)\d\d-?[01]\d-?[0-3]\d[T_ -]?[0-2]\d[:_-]?[0-5]\d(?:[:_-]?[0-5]\d(?:\.\d+)?)?Z?(?!\d)"),
    ("date", r"(?<!\d)(?:19|20)\d\d(?P<sep>[-_.]?)[01]\d(?P=sep)[0-3]\d(?!\d)"),
    ("year", r"(?<=year=)\d{4}(?!\d)"),
    ("month", r"(?<=month=)\d\d?(?!\d)"),
    ("day", r"(?<=day=)\d\d?(?!\d)"),
    ("hex", r"(?<![0-9A-Za-z])(?=[0-9a-fA-F]*\d)(?=[0-9a-fA-F]*[a-fA-F])[0-9a-fA-F]{12,}(?![0-9A-Za-z])"),
    ("id", r"(?<![0-9A-Za-z])(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[0-9A-Za-z]{16,}(?![0-9A-Za-z])"),
    ("n", r"\d+"),
)
_KIND = re.compile("|".join(f"(?P<{name}>{text})" for name, text in _KINDS))
_REPLACED = re.compile(f"{OPEN}([a-z]+){CLOSE}")
_YEAR = re.compile(r"(?:19|20)\d\d")


@dataclass(frozen=True)
class KnownIds:
    """
    The ids that keys are searched for.

    :param patients: HealthEx's ids of the patients.
    :param externals: the study's own ids of the patients.
    :param projects: HealthEx's ids of the projects.
    :param organizations: HealthEx's ids of the organizations.
    """

    patients: frozenset[str] = frozenset()
    externals: frozenset[str] = frozenset()
    projects: frozenset[str] = frozenset()
    organizations: frozenset[str] = frozenset()

    def lowered(self) -> KnownIds:
        """Return the same in lower case."""
        kinds = (self.patients, self.externals, self.projects, self.organizations)
        return KnownIds(*(frozenset(map(str.lower, each)) for each in kinds))


@dataclass(frozen=True)
class Segment:
    """
    One part of a key between slashes.

    :param shape: with path variables for ids and kinds for dates, numbers and the like.
    :param patients: the ids of patients in it, as (path variable, id).
    :param values: what the kinds stand for, in their order.
    """

    shape: str
    patients: tuple[tuple[str, str], ...] = ()
    values: tuple[str, ...] = ()


@dataclass
class Reader:
    """Reads segments; the same one comes in thousands of keys, and is read once."""

    ids: KnownIds
    _variables: dict[str, str] = field(init=False, default_factory=dict)
    _lengths: frozenset[int] = field(init=False)
    _read: dict[str, Segment] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        # HealthEx's own id goes before the study's, where a study uses HealthEx's: it needs no argument.
        for name, values in (
            ("orgId", self.ids.organizations),
            ("projectId", self.ids.projects),
            ("externalId", self.ids.externals),
            ("healthexPatientId", self.ids.patients),
        ):
            self._variables.update(dict.fromkeys((value for value in values if value), name))
        self._lengths = frozenset(map(len, self._variables))

    def segments(self, key: str) -> list[Segment]:
        """Return the segments of a key."""
        found = [self._read.get(text) or self._new(text) for text in key.split("/")]
        for index, segment in enumerate(found[:-1]):
            if segment.shape == f"{OPEN}n{CLOSE}" and _YEAR.fullmatch(segment.values[0]):
                found[index] = Segment(f"{OPEN}year{CLOSE}", (), segment.values)
                _read_days(found, index + 1)
        return found

    def _new(self, text: str) -> Segment:
        segment = self._read[text] = self._analyse(text)
        return segment

    def _analyse(self, text: str) -> Segment:
        shape, patients, values, end = "", [], [], 0
        for start, stop, variable in self._ids_in(text):
            literal, replaced = _replace(text[end:start])
            shape += f"{literal}{{{variable}}}"
            values += replaced
            end = stop
            if variable in ("healthexPatientId", "externalId"):
                patients.append((variable, text[start:stop]))
        literal, replaced = _replace(text[end:])
        return Segment(shape + literal, tuple(patients), (*values, *replaced))

    def _ids_in(self, text: str) -> Iterator[tuple[int, int, str]]:
        whole = self._variables.get(text)
        if whole:
            yield 0, len(text), whole
            return
        stem = text.partition(".")[0]
        runs = [run.span() for run in _RUN.finditer(text)]
        at = 0
        for start, _ in runs:
            if start < at:
                continue
            ends = [end for _, end in runs if end > start and end - start in self._lengths]
            for end in reversed(ends):
                found = text[start:end]
                if found in self._variables and (len(found) >= SHORTEST_INSIDE or found == stem):
                    yield start, end, self._variables[found]
                    at = end
                    break


def _read_days(segments: list[Segment], index: int) -> None:
    """Read what follows a folder that is a year as month and day."""
    for kind in ("month", "day"):
        if index >= len(segments) - 1 or segments[index].shape != f"{OPEN}n{CLOSE}":
            return
        if len(segments[index].values[0]) > 2:
            return
        segments[index] = Segment(f"{OPEN}{kind}{CLOSE}", (), segments[index].values)
        index += 1


def _replace(text: str) -> tuple[str, list[str]]:
    values: list[str] = []

    def kind(match: re.Match[str]) -> str:
        values.append(match.group())
        return f"{OPEN}{match.lastgroup}{CLOSE}"

    return _KIND.sub(kind, text), values


def kinds(shape: str) -> list[str]:
    """Return the kinds in a shape, in their order."""
    return _REPLACED.findall(shape)


def restore(shape: str, values: Iterable[str | None]) -> str:
    """Put constants back into a shape; None leaves a kind."""
    order = iter(values)
    return _REPLACED.sub(lambda match: next(order) or match.group(), shape)


def as_glob(shape: str) -> str:
    """Return a shape with a star for each kind; stars that touch are one."""
    return re.sub(r"\*+", "*", _REPLACED.sub("*", shape))


def readable(shape: str) -> str:
    """Return a shape for people: ``<date>/bundle-<n>.json``."""
    return shape.replace(OPEN, "<").replace(CLOSE, ">")
