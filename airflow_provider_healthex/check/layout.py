"""Infers path templates from keys and known ids, ranked by what they explain."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from airflow_provider_healthex.check.patterns import MOMENTS, KnownIds, Reader, as_glob, kinds, restore
from airflow_provider_healthex.delivery import StoredObject
from airflow_provider_healthex.delivery.template import Target, expand, parse_key, variables
from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: Patients below which a template is thin evidence.
ENOUGH_PATIENTS = 3
#: Different texts in one place of otherwise equal paths, from which on the place is taken for one that varies.
VARIES = 4
#: Candidates that are compared with every key.
CANDIDATES = 8

_PATIENT = re.compile(r"\{(?:healthexPatientId|externalId)\}")
_PLAIN = re.compile(r"[a-z_-]{1,24}")
_SHORT = 6

Rows = Sequence[StoredObject]


@dataclass(frozen=True)
class Template:
    """
    One path that explains keys.

    :param path: as ``bucket_key`` takes it.
    :param wildcard: whether the path is a glob, and needs ``wildcard_match=True``.
    :param patients: known patients with at least one object.
    :param objects: objects of those patients.
    :param strangers: other values where the patient's id stands: former patients, or chance.
    :param ambiguous: keys that the path reads in more than one way.
    """

    path: str
    wildcard: bool
    patients: int = 0
    objects: int = 0
    strangers: int = 0
    ambiguous: int = 0

    @property
    def is_thin(self) -> bool:
        """Whether it rests on too few patients to be relied on."""
        return self.patients < ENOUGH_PATIENTS

    @property
    def variables(self) -> tuple[str, ...]:
        """The path variables it needs values for."""
        return variables(self.path)

    def shown(self, *, show_ids: bool = False) -> str:
        """Return the path for people: what one patient's path alone says may be about that patient, and is masked."""
        if show_ids or self.patients > 1:
            return self.path
        return "/".join(map(_masked, self.path.split("/")))


@dataclass
class Explained:
    """
    What a path matches.

    :param rows: the objects of each known patient, by the id that stands in their keys.
    :param strangers: other values in the patient's place.
    :param matched: all objects that match, whosever.
    :param ambiguous: keys that can be read in more than one way.
    """

    rows: dict[str, list[StoredObject]] = field(default_factory=lambda: defaultdict(list))
    strangers: set[str] = field(default_factory=set)
    matched: int = 0
    ambiguous: int = 0

    @property
    def objects(self) -> int:
        """The objects of known patients."""
        return sum(map(len, self.rows.values()))


@dataclass(frozen=True)
class Layout:
    """
    What was found.

    :param templates: the paths, the one that explains most first.
    :param objects: how many objects were searched, without folder markers.
    :param with_patient: objects whose key holds a known patient's id.
    :param several_patients: objects whose key holds more than one patient's id: they belong to nobody.
    :param other_case: whether ids are found only when upper and lower case are taken for the same.
    """

    templates: tuple[Template, ...]
    objects: int
    with_patient: int = 0
    several_patients: int = 0
    other_case: bool = False

    @property
    def best(self) -> Template | None:
        """The path that explains most."""
        return self.templates[0] if self.templates else None


def find_layout(rows: Rows, ids: KnownIds) -> Layout:
    """
    Find the paths that the keys of known patients follow.

    A path is proposed only where it was found for two patients, or is all there is. Dates and retrieval ids before
    the patient become ``*``, also where only one was seen.
    """
    rows = [row for row in rows if row.is_data]
    groups, with_patient, several = _groups(rows, ids)
    candidates = list(dict.fromkeys(_candidates(groups)))[:CANDIDATES]
    found = [template for path, wildcard in candidates if (template := _compared(path, wildcard, rows, ids))]
    found.sort(key=_rank)
    layout = Layout(tuple(_without_subsumed(found)), len(rows), with_patient, several)
    if not with_patient and rows:
        lowered = [row._replace(key=row.key.lower()) for row in rows]
        return replace(layout, other_case=bool(_groups(lowered, ids.lowered())[1]))
    return layout


def explain(path: str, wildcard: bool, rows: Rows, ids: KnownIds) -> Explained:
    """Compare a path with every key."""
    found = Explained()
    known, name = (
        (ids.patients, "healthexPatientId") if "healthexPatientId" in variables(path) else (ids.externals, "externalId")
    )
    reader, targets = Reader(ids), dict[str, Target]()
    for row in rows:
        if not row.is_data:
            continue
        try:
            values = parse_key(path, row.key, wildcard=wildcard)
        except HealthExConfigurationError:
            # It has more than one reading, of which a known id is the right one.
            found.ambiguous += 1
            patients = {value for segment in reader.segments(row.key) for key, value in segment.patients if key == name}
            for patient in patients:
                target = targets.get(patient) or expand(path, values_for(path, patient, ids), wildcard=wildcard)
                targets[patient] = target
                if target.matches(row.key):
                    found.matched += 1
                    found.rows[patient].append(row)
            continue
        if values is None:
            continue
        found.matched += 1
        if not _is_ours(values, ids) or name not in values:
            continue
        if values[name] in known:
            found.rows[values[name]].append(row)
        else:
            found.strangers.add(values[name])
    return found


def _is_ours(values: Mapping[str, str], ids: KnownIds) -> bool:
    """Whether a key is of the project and the organization that were asked about, as far as these are known."""
    return all(
        not known or values.get(name) in (None, *known)
        for name, known in (("projectId", ids.projects), ("orgId", ids.organizations))
    )


# --- from keys to candidates


@dataclass
class _Group:
    """Keys of one shape, up to the segment that names the patient."""

    patients: set[str] = field(default_factory=set)
    objects: int = 0
    values: list[set[str]] = field(default_factory=list)
    is_file: bool = False

    def add(self, patient: str, values: Sequence[str]) -> None:
        self.patients.add(patient)
        self.objects += 1
        self.values = self.values or [set() for _ in values]
        for seen, value in zip(self.values, values, strict=True):
            if len(seen) < VARIES:
                seen.add(value)

    def absorb(self, other: _Group) -> None:
        self.patients |= other.patients
        self.objects += other.objects


_Groups = dict[tuple[str, ...], _Group]


def _groups(rows: Iterable[StoredObject], ids: KnownIds) -> tuple[_Groups, int, int]:
    reader = Reader(ids)
    groups: dict[tuple[str, ...], _Group] = defaultdict(_Group)
    with_patient = several = 0
    for row in rows:
        segments = reader.segments(row.key)
        named = [set(segment.patients) for segment in segments]
        for variable in ("healthexPatientId", "externalId"):
            values = {value for pairs in named for name, value in pairs if name == variable}
            if values:
                break
        else:
            continue
        with_patient += 1
        if len(values) > 1:
            several += 1
            continue
        at = next(index for index, pairs in enumerate(named) if any(name == variable for name, _ in pairs))
        is_file = at == len(segments) - 1
        head = segments[: at + 1]
        group = groups[tuple(segment.shape for segment in head) + (("",) if not is_file else ())]
        group.is_file = is_file
        group.add(values.pop(), [value for segment in head for value in segment.values])
    return dict(groups), with_patient, several


def _candidates(groups: _Groups) -> Iterator[tuple[str, bool]]:
    """Yield paths and whether each is a glob, the most patients first."""
    constant = _merged((_restored(head, group), group) for head, group in groups.items())
    folders = {head: group for head, group in constant.items() if not group.is_file}
    varied = _varied(folders) | _files({head: group for head, group in constant.items() if group.is_file})
    for head, _ in sorted(varied.items(), key=lambda item: (-len(item[1].patients), -item[1].objects, item[0])):
        path = as_glob("/".join(head))
        if "*" in path or not re.search(r"[?[]", path):  # a key's own "?" or "[" looks like a glob's
            yield path, "*" in path


def _restored(head: tuple[str, ...], group: _Group) -> tuple[str, ...]:
    """Put back what is the same for all: the 1 of "v1", and an id that isn't a patient's."""
    order = iter(group.values)
    text = []
    for shape in head:
        constants = []
        for kind in kinds(shape):
            seen = next(order)
            constants.append(next(iter(seen)) if len(seen) == 1 and _is_constant(kind, group) else None)
        text.append(restore(shape, constants))
    return tuple(text)


def _is_constant(kind: str, group: _Group) -> bool:
    if kind in MOMENTS or group.is_file:
        return False
    return kind == "n" or len(group.patients) >= ENOUGH_PATIENTS


def _merged(pairs: Iterable[tuple[tuple[str, ...], _Group]]) -> _Groups:
    merged: _Groups = {}
    for head, group in pairs:
        if head in merged:
            merged[head].absorb(group)
        else:
            merged[head] = group
    return merged


def _varied(folders: _Groups) -> _Groups:
    """Make of paths that differ in one segment alone, in many ways, one with a star there."""
    alike: dict[tuple[int, tuple[str, ...]], list[tuple[str, ...]]] = defaultdict(list)
    for head in folders:
        for index, segment in enumerate(head[:-1]):
            if "{" not in segment:
                alike[index, (*head[:index], "*", *head[index + 1 :])].append(head)
    varied = dict(folders)
    for (_, head), members in sorted(alike.items(), key=lambda item: -len(item[1])):
        present = [each for each in members if each in varied]
        if len(present) >= VARIES:
            varied.update(_merged((head, varied.pop(each)) for each in present))
    return varied


def _files(files: _Groups) -> _Groups:
    """Make of names that begin alike one path: the exact name where there is only one, else a glob."""
    alike: dict[tuple[str, ...], dict[str, _Group]] = defaultdict(dict)
    for head, group in files.items():
        match = next(_PATIENT.finditer(head[-1]))
        alike[(*head[:-1], head[-1][: match.end()])][head[-1][match.end() :]] = group
    paths: _Groups = {}
    for start, ends in alike.items():
        only = next(iter(ends))
        end = only if len(ends) == 1 and not kinds(only) else _common(ends) + "*"
        paths.update(_merged(((*start[:-1], start[-1] + end), group) for group in ends.values()))
    return paths


def _common(texts: Iterable[str]) -> str:
    """Return what texts begin with alike, up to a character that separates."""
    texts = [re.split("\ue000", text, maxsplit=1)[0] for text in texts]
    first, last = min(texts), max(texts)
    length = next((at for at, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), len(first))
    separators = [match.end() for match in re.finditer(r"[^0-9A-Za-z]", first[:length])]
    return first[: separators[-1]] if separators else ""


# --- from candidates to templates


def _compared(path: str, wildcard: bool, rows: Rows, ids: KnownIds) -> Template | None:
    try:
        explained = explain(path, wildcard, rows, ids)
        if not _is_matched(path, wildcard, explained, ids):
            return None
    except HealthExConfigurationError:  # a path that this package's templates can't express
        return None
    if not explained.rows or _is_chance(explained):
        return None
    return Template(
        path, wildcard, len(explained.rows), explained.objects, len(explained.strangers), explained.ambiguous
    )


def _is_chance(explained: Explained) -> bool:
    """Whether short ids may just be numbers of something else: most values in their place belong to no patient."""
    return min(map(len, explained.rows)) < _SHORT and len(explained.strangers) >= len(explained.rows)


def _is_matched(path: str, wildcard: bool, explained: Explained, ids: KnownIds) -> bool:
    """Whether the sensors' own matching gives patients their objects, tried on some."""
    for patient, rows in list(explained.rows.items())[:50]:
        for row in rows[:5]:
            try:
                values: Mapping[str, str | None] | None = parse_key(path, row.key, wildcard=wildcard)
            except HealthExConfigurationError:  # it has more than one reading
                values = values_for(path, patient, ids)
            if values is None or not expand(path, values, wildcard=wildcard).matches(row.key):
                return False
    return True


def values_for(path: str, patient: str, ids: KnownIds) -> dict[str, str | None]:
    """Return the values of a path's variables for one patient, as far as they are known."""
    return {
        "orgId": next(iter(ids.organizations), None),
        "projectId": next(iter(ids.projects), None),
        "healthexPatientId": patient,
        # A path with both ids: any external id that is right for this patient is in the keys, not known here.
        "externalId": patient if "healthexPatientId" not in variables(path) else None,
    }


def _rank(template: Template) -> tuple[object, ...]:
    return (-template.patients, -template.objects, template.path.count("*"), -len(template.variables), template.path)


def _without_subsumed(found: Sequence[Template]) -> Iterator[Template]:
    """Leave out what only one patient has, where there is something that more have; and more than three."""
    several = [template for template in found if template.patients > 1]
    yield from (several or found[:1])[:3]


def _masked(segment: str) -> str:
    if "{" in segment or "*" in segment or _PLAIN.fullmatch(segment) or not segment:
        return segment
    return segment[:1] + "…"
