"""The delivery path as a template: which objects it stands for, and which patient a key belongs to."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from airflow_provider_healthex.delivery.key_match import (
    STAR_OR_CLASS,
    KeyMatch,
    Name,
    Part,
    Star,
    TooManyReadings,
    glob_parts,
    literal_parts,
)
from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: HealthEx's own variables that were seen in its delivery set-up. The list there was cut off: there may be more.
VARIABLES = ("orgId", "projectId", "healthexPatientId", "externalId")

_PATIENT_VARIABLES = frozenset({"healthexPatientId", "externalId"})
_HOW_TO_GIVE = {
    "orgId": "give org_id=…, or 'org_id' in the Extra of the operator's HealthEx connection",
    "projectId": "give update=… or project_id=…",
    "healthexPatientId": "give update=… or patient_id=…",
    "externalId": "give external_id=…, the id your side gave the patient: HealthEx does not answer it",
}
_GLOB = "*?[]"
_TOKEN = re.compile(r"\{([^{}]*)\}|[^{}]+|[{}]")
_NAMES = "|".join(VARIABLES)
_FOREIGN = re.compile(rf"\{{\{{-?\s*(?:{_NAMES})\s*-?\}}\}}|[$<:%]\{{?(?:{_NAMES})\b")
_UNSAFE_VALUE = re.compile(r"[/*?\[\]{}\x00-\x1f\x7f-\x9f]|\.\.|^\.$")


class Kind(Enum):
    """How the objects of a path are matched."""

    PREFIX = "prefix"  # everything under a path that ends in "/"
    KEY = "key"  # this one object
    PATTERN = "pattern"  # a glob over the whole key


@dataclass(frozen=True)
class Variable:
    """One ``{name}`` in a path."""

    name: str


@dataclass(frozen=True)
class Target:
    """
    One path with its values filled in.

    :param template: the path as its author wrote it; free of ids, so what logs and messages show.
    :param kind: how objects are matched.
    :param prefix: the literal beginning of every matching key: what to list.
    :param pattern: the glob, for :attr:`Kind.PATTERN`, else an empty string.
    """

    template: str
    kind: Kind
    prefix: str
    pattern: str = ""

    def matches(self, key: str) -> bool:
        """Whether an object of this key belongs to the path."""
        if self.kind is Kind.PREFIX:
            return key.startswith(self.prefix)
        if self.kind is Kind.KEY:
            return key == self.prefix
        return fnmatch.fnmatchcase(key, self.pattern)

    def holds_marker(self, key: str, marker: str) -> bool:
        """
        Whether a key is this path's marker: its base name is ``marker``, or ends with it where it starts with a dot.

        A marker need not match the glob (``*.json`` and ``_SUCCESS``), but must lie where matching keys do.
        """
        folder, slash, name = key.rpartition("/")
        if not (name.endswith(marker) if marker.startswith(".") else name == marker):
            return False
        if self.kind is not Kind.PATTERN or self.matches(key):
            return self.matches(key)
        folders = "".join(self.pattern.rpartition("/")[:2]) + "*"
        return key.startswith(self.prefix) and fnmatch.fnmatchcase(folder + slash, folders)


def refuse_foreign_syntax(path: str) -> None:
    """
    Refuse a path with the variables in somebody else's syntax: ``{{orgId}}``, ``${orgId}``, ``<orgId>``, ``:orgId``.

    HealthEx's syntax is not public, so a path pasted from its set-up page would be taken literally, or rendered
    to nothing by Jinja, and the sensor would wait in the wrong place.

    :raises HealthExConfigurationError: naming what was found.
    """
    found = _FOREIGN.search(path)
    if found:
        name = next(v for v in VARIABLES if v in found.group())
        raise HealthExConfigurationError(
            f"The delivery path {path!r} contains {found.group()!r}. Write this package's variables in single "
            f"braces and nothing around them: {{{name}}}."
        )


def parse_template(path: str) -> tuple[str | Variable, ...]:
    """
    Split a path into literal text and variables.

    :raises HealthExConfigurationError: for an empty path, an unknown variable, a stray brace, another system's
        syntax, or a variable whose end can't be told from what follows it.
    """
    if not isinstance(path, str) or not path:
        raise HealthExConfigurationError(
            f"The delivery path is {path!r}; give the key, the prefix ending in '/', or the glob to wait for."
        )
    return _parse_text(path)


@lru_cache(maxsize=256)
def _parse_text(path: str) -> tuple[str | Variable, ...]:
    refuse_foreign_syntax(path)
    parts = tuple(_parts(path))
    for position, part in enumerate(parts):
        if isinstance(part, Variable):
            before = parts[position - 1] if position else ""
            after = parts[position + 1] if position + 1 < len(parts) else ""
            _check_neighbours(path, part, before, after)
    return parts


def _parts(path: str) -> Iterator[str | Variable]:
    for token in _TOKEN.finditer(path):
        text, name = token.group(), token.group(1)
        if name in VARIABLES:
            yield Variable(name)
        elif text in "{}" or name is not None:
            known = ", ".join(f"{{{v}}}" for v in VARIABLES)
            raise HealthExConfigurationError(
                f"The delivery path {path!r} contains {text!r}, which is not one of its variables: {known}."
            )
        else:
            yield text


def _check_neighbours(path: str, variable: Variable, before: str | Variable, after: str | Variable) -> None:
    if isinstance(before, Variable) or isinstance(after, Variable):
        raise HealthExConfigurationError(
            f"In the delivery path {path!r}, {{{variable.name}}} touches another variable: put a literal, such as "
            "'/', between them, or one patient's path could be read as another's."
        )
    for edge in (before[-1:], after[:1]):
        if edge and edge in "$<>:":
            raise HealthExConfigurationError(
                f"In the delivery path {path!r}, {edge!r} stands next to {{{variable.name}}}: this looks like "
                f"another system's template. Write {{{variable.name}}} alone, between literals such as '/'."
            )
        if edge and edge in _GLOB:
            raise HealthExConfigurationError(
                f"In the delivery path {path!r}, {edge!r} stands next to {{{variable.name}}} and would match "
                "patients whose id begins or ends alike: put a literal, such as '/', between them."
            )


def _parse(path: str, wildcard: bool) -> tuple[str | Variable, ...]:
    parts = parse_template(path)
    if wildcard and _has_variable_in_bracket(parts):
        raise HealthExConfigurationError(
            f"In the delivery path {path!r}, a variable stands between '[' and ']', where a glob would match any one "
            "of its characters: put it outside of them."
        )
    return parts


def _has_variable_in_bracket(parts: tuple[str | Variable, ...]) -> bool:
    opened = False
    for part in parts:
        if isinstance(part, str):
            if opened and "]" in part:
                return True
            opened = opened or "[" in STAR_OR_CLASS.sub("", part)
    return False


def expand(path: str, values: Mapping[str, str | None], *, wildcard: bool = False) -> Target:
    """
    Fill in a path.

    :param path: the template.
    :param values: the value of each variable, by its name; a variable the path lacks may be missing.
    :param wildcard: read the path as a glob over the whole key (``*``, ``?``, ``[…]``), as ``fnmatch`` does.
    :raises HealthExConfigurationError: for a bad template, or a variable without a usable value.
    """
    filled = "".join(
        _value(path, part.name, values.get(part.name)) if isinstance(part, Variable) else part
        for part in _parse(path, wildcard)
    )
    literal = _literal(filled) if wildcard else filled
    if literal != filled:
        pattern = filled + "*" if filled.endswith("/") else filled
        return Target(path, Kind.PATTERN, literal, pattern)
    return Target(path, Kind.PREFIX if filled.endswith("/") else Kind.KEY, filled)


def _literal(glob: str) -> str:
    return re.split(r"[*?\[]", glob, maxsplit=1)[0]


def _value(path: str, name: str, value: str | None) -> str:
    if value is None or value == "":
        raise HealthExConfigurationError(
            f"The delivery path {path!r} needs {{{name}}}, and there is no value for it: {_HOW_TO_GIVE[name]}."
        )
    unsafe = _UNSAFE_VALUE.search(value) if isinstance(value, str) else None
    if unsafe or not isinstance(value, str):
        what = f"contains {unsafe.group()!r}" if unsafe else f"is a {type(value).__name__}, no string"
        raise HealthExConfigurationError(
            f"The value for {{{name}}} in the delivery path {path!r} {what}; it could leave its place in the path "
            "or match other patients. Give the id as HealthEx writes it."
        )
    return value


def fill(path: str, values: Mapping[str, str | None]) -> str:
    """
    Fill in those variables that have a value and leave the others: a template for those who share these values.

    :raises HealthExConfigurationError: for a bad template, or a value that can't be used.
    """

    def piece(part: str | Variable) -> str:
        if isinstance(part, str):
            return part
        return _value(path, part.name, values[part.name]) if values.get(part.name) else f"{{{part.name}}}"

    return "".join(map(piece, parse_template(path)))


def literal_prefix(path: str, *, wildcard: bool = False) -> str:
    """Return what every key of the path begins with, before its first variable and its glob."""
    first = _parse(path, wildcard)[0]
    text = first if isinstance(first, str) else ""
    return _literal(text) if wildcard else text


def variables(path: str) -> tuple[str, ...]:
    """Return the names of the path's variables, each once, in their order."""
    return tuple(dict.fromkeys(part.name for part in parse_template(path) if isinstance(part, Variable)))


def surroundings(path: str, *, wildcard: bool = False) -> tuple[str, str, str]:
    """
    Return the path's first variable, and the literals beside it.

    A variable is beside a ``*`` only if no literal lies between them.
    """
    parts = _parse(path, wildcard)
    position, variable = next((i, part) for i, part in enumerate(parts) if isinstance(part, Variable))
    before = parts[position - 1] if position else ""
    after = parts[position + 1] if position + 1 < len(parts) else ""
    assert isinstance(before, str)
    assert isinstance(after, str)
    if wildcard:
        before, after = re.split(r"[*?\[\]]", before)[-1], _literal(after)
    return variable.name, before, after


def first_unclear_separator(path: str) -> str | None:
    """Return the first literal between two variables that an id may contain as well, or None."""
    parts = parse_template(path)
    for before, literal, after in zip(parts, parts[1:], parts[2:], strict=False):
        between = isinstance(before, Variable) and isinstance(after, Variable)
        if between and isinstance(literal, str) and "/" not in literal:
            return literal
    return None


def names_patient(path: str) -> bool:
    """Whether the path has a variable that differs from patient to patient."""
    return any(isinstance(part, Variable) and part.name in _PATIENT_VARIABLES for part in parse_template(path))


def parse_key(path: str, key: str, *, wildcard: bool = False) -> dict[str, str] | None:
    """
    Return the variables of a key that was delivered to a path, or None where the key isn't one of the path's.

    For those who come from S3 notifications; their keys are URL-encoded, so call ``urllib.parse.unquote_plus``
    on them first.

    Takes time in proportion to the key's length, whatever the template.

    :param path: the template, as the sensors take it.
    :param key: an object's whole key.
    :param wildcard: read ``*``, ``?`` and ``[…]`` in the path as a glob.
    :raises HealthExConfigurationError: for a bad template, or one that reads this key in more than one way. Where an
        id could be shorter or longer, none of them wins. A variable that stands twice in a path with globs, or without
        a ``/`` between variables, is tried at a limited number of places; beyond that the key counts as such a one.
    """
    plain = _plain_regex(path, wildcard)
    if plain is not None:
        match = plain.fullmatch(key)
        found = match.groupdict() if match else None
    else:
        found = _only_reading(path, key, wildcard)
    return None if found is None or any(_UNSAFE_VALUE.search(value) for value in found.values()) else found


@lru_cache(maxsize=256)
def _plain_regex(path: str, wildcard: bool) -> re.Pattern[str] | None:
    """
    Return the regular expression of a path whose variables are separated by ``/``, and that has no glob.

    The next ``/`` ends a variable there, so that keys are read in one way only, and without backtracking.
    """
    parts, seen, pieces = _parse(path, wildcard), set[str](), []
    if first_unclear_separator(path) is not None or (wildcard and _literal(path) != path):
        return None
    for part in parts:
        if isinstance(part, str):
            pieces.append(re.escape(part))
        else:
            pieces.append(f"(?P={part.name})" if part.name in seen else f"(?P<{part.name}>[^/]+)")
            seen.add(part.name)
    return re.compile("".join(pieces) + (".*" if path.endswith("/") else ""), re.DOTALL)


def _only_reading(path: str, key: str, wildcard: bool) -> dict[str, str] | None:
    match = KeyMatch(_key_parts(path, wildcard), key)
    try:
        first, last = match.spans(longest=False), match.spans(longest=True)
    except TooManyReadings:
        first, last = {}, None
    if first is None:
        return None
    if first != last:
        raise HealthExConfigurationError(
            f"The delivery path {path!r} reads a key in more than one way: separate its variables by '/', and put no "
            "'*' where an id could stand as well."
        )
    return {name: key[begin:end] for name, (begin, end) in first.items()}


@lru_cache(maxsize=256)
def _key_parts(path: str, wildcard: bool) -> tuple[Part, ...]:
    parts: list[Part] = []
    for part in _parse(path, wildcard):
        if isinstance(part, Variable):
            parts.append(Name(part.name))
        else:
            parts += glob_parts(part) if wildcard else literal_parts(part)
    return (*parts, Star()) if path.endswith("/") else tuple(parts)
