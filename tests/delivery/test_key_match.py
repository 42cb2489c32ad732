"""How a template matches a key: as a regular expression would, and in time linear in the key's length."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_healthex.delivery import VARIABLES, expand, parse_key
from airflow_provider_healthex.delivery import template as module
from airflow_provider_healthex.exceptions import HealthExConfigurationError

AMBIGUOUS = "in more than one way"

#: S3's longest key.
LONGEST = 1_024


def parse_key_by_regex(path: str, key: str, wildcard: bool) -> dict[str, str] | str | None:
    """
    Return what two regular expressions read, with variables and stars as short and as long as can be.

    The reference for small keys: it backtracks, for half a minute where a key is long and a template has three stars.
    """
    first, last = (_regex(path, wildcard, lazy).fullmatch(key) for lazy in ("?", ""))
    if first is None or last is None:
        return None
    found = first.groupdict()
    if any(first.span(name) != last.span(name) for name in found):
        return AMBIGUOUS
    return None if any(module._UNSAFE_VALUE.search(value) for value in found.values()) else found


def _regex(path: str, wildcard: bool, lazy: str) -> re.Pattern[str]:
    seen: set[str] = set()
    pieces = []
    for part in module._parse(path, wildcard):
        if isinstance(part, str):
            pieces.append(_glob_regex(part, lazy) if wildcard else re.escape(part))
        elif part.name in seen:
            pieces.append(f"(?P={part.name})")
        else:
            seen.add(part.name)
            pieces.append(f"(?P<{part.name}>[^/]+{lazy})")
    return re.compile("".join(pieces) + (".*" if path.endswith("/") else ""), re.DOTALL)


def _glob_regex(text: str, lazy: str) -> str:
    stars = re.compile(r"(\*+|\[!?\]?[^\]]*\])")
    return "".join(f".*{lazy}" if token.startswith("*") else _one_to_one(token) for token in stars.split(text) if token)


def _one_to_one(glob: str) -> str:
    return re.sub(r"^\(\?s:(.*)\)\\[zZ]$", r"\1", module.fnmatch.translate(glob), flags=re.DOTALL)


def read(path: str, key: str, wildcard: bool) -> dict[str, str] | str | None:
    try:
        return parse_key(path, key, wildcard=wildcard)
    except HealthExConfigurationError as error:
        return AMBIGUOUS if AMBIGUOUS in str(error) else str(error)


def is_template(path: str) -> bool:
    try:
        module._parse(path, True)
    except HealthExConfigurationError:
        return False
    return True


pieces = st.sampled_from(
    ["a", "b", "/", "-", "ab", "aa", "*", "**", "?", "[ab]", "[!a]", "[b-a]", "[]", "[!]", "[a", "]", "."]
)
templates = (
    st.lists(st.one_of(pieces, pieces, st.sampled_from([f"{{{name}}}" for name in VARIABLES])), min_size=1, max_size=9)
    .map("".join)
    .filter(is_template)
)
keys = st.text(alphabet="aab/-.[]\n", max_size=12)


@given(templates, keys, st.booleans())
@example("{orgId}-{projectId}-{orgId}", "a-b-b-b-a", False)
@example("*/{orgId}/*/{orgId}/*", "a/b/a/b/b/a", True)
@example("[!]-{orgId}", "[!]-a", True)
@example("*", "", True)
def test_a_key_is_read_as_two_regular_expressions_read_it(path, key, wildcard):
    assert read(path, key, wildcard) == parse_key_by_regex(path, key, wildcard)


@given(st.data(), templates)
def test_a_key_made_from_a_template_is_read_so_too(data, path):
    """Random keys seldom match."""
    made = re.sub(r"\{\w+\}", lambda _: data.draw(st.sampled_from(["a", "b", "a-b", "-", "."])), path)
    made = re.sub(r"\*+", lambda _: data.draw(st.sampled_from(["", "a", "/", "a/b/-", "-a"])), made)
    key = made.replace("?", "a") + data.draw(st.sampled_from(["", "a", "/a"]))
    for wildcard in (True, False):
        assert read(path, key, wildcard) == parse_key_by_regex(path, key, wildcard)


ADVERSARIAL = [
    ("*/*/{healthexPatientId}/*/*.json", "a/"),
    ("*/*/{healthexPatientId}/*/*.json", "/"),
    ("*a*a*a*a*b/{healthexPatientId}/*a*a*b", "a"),
    ("{orgId}-{projectId}-{healthexPatientId}-{externalId}.json", "-"),
    ("{orgId}-{projectId}-{healthexPatientId}-{externalId}.json", "-a"),
    ("*-{orgId}-*-{projectId}-*-{healthexPatientId}-*/x", "-"),
    ("*[ab]*[!c]*?/{externalId}", "ab/"),
]
#: Where a variable stands twice, equality couples what lies far apart.
REPEATED = [
    ("*/{orgId}/*/{orgId}/*/{orgId}/*.json", "a/"),
    ("{orgId}-{projectId}-{orgId}-{projectId}-{externalId}-{orgId}.json", "-"),
    ("*-{orgId}-*-{projectId}-*-{orgId}-*-{projectId}.json", "a-"),
]


def steps(function: Callable[[], Any]) -> int:
    """Count the lines of Python that run, also in what is called: work without a clock."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("ending", ["", "x", "/x", "x.json"])
@pytest.mark.parametrize(("path", "unit"), [*ADVERSARIAL, *REPEATED])
def test_the_work_for_a_key_is_linear_in_its_length(path, unit, ending):
    def work(length: int) -> int:
        key = (unit * length)[: length - len(ending)] + ending
        read(path, key, True)  # compiled, and kept
        return steps(lambda: read(path, key, True))

    short, long = work(LONGEST // 8), work(LONGEST)
    # A repeated variable may be tried at many places: there is a limit to it, in proportion to the key's length.
    a_character = 40 * len(path) if (path, unit) in REPEATED else 3 * len(path)
    assert long <= a_character * LONGEST
    assert long <= 12 * short + a_character * 8


@pytest.mark.parametrize(
    "path",
    ["d/{projectId}/{healthexPatientId}/", "{orgId}/{projectId}/{orgId}-x.json", "a-{orgId}-a-a/b-{externalId}-b"],
)
def test_where_slashes_separate_the_variables_a_regular_expression_has_nothing_to_try_out(path):
    for key in ("a" * LONGEST, "a-" * 512, "a/a" * 341, "d/p/" + "a" * 1000, "a-a-a/b-" + "-b" * 500):
        assert read(path, key, True) == parse_key_by_regex(path, key, True)
        assert steps(lambda key=key: read(path, key, True)) < 40


@pytest.mark.parametrize("glob", ["*a*a*a*a*a*a*b", "*/*/*/*/*/*.json", "*?*?*?*?*?b", "*[ab]*[ab]*[ab]*[ab]*c"])
def test_a_filled_in_glob_does_not_backtrack(glob):
    """`fnmatch` makes each star but the last atomic: from there on the rest is found once, or not at all."""
    target = expand(glob, {}, wildcard=True)
    assert not target.matches("a/" * (LONGEST // 2))
    translated = module.fnmatch.translate(target.pattern)
    assert translated.count("(?>.*?") == glob.count("*") - 1
    assert translated.count(".*") == glob.count("*")


def test_a_variable_that_could_be_at_too_many_places_is_refused_as_ambiguous():
    path, _ = REPEATED[1]
    assert read(path, "-" * 20 + "x.json", False) is None
    assert read(path, "-" * 900 + "x.json", False) == AMBIGUOUS
