"""The key ranges of key order in which patients' keys lie."""

from __future__ import annotations

import pytest

from airflow_provider_healthex.delivery import expand
from airflow_provider_healthex.delivery.key_ranges import KeyRange, are_disjoint, key_ranges


@pytest.mark.parametrize(
    ("prefixes", "exact", "disjoint"),
    [
        ([], False, True),
        (["d/a/", "d/a-b/"], False, True),
        (["d/a-", "d/a-b-"], False, False),
        (["d/a", "d/a.b"], True, True),
        (["d/a/", "d/a/"], False, False),
        ([""], False, False),
    ],
)
def test_key_ranges_that_share_keys_are_not_disjoint(prefixes, exact, disjoint):
    assert are_disjoint(KeyRange(prefix, exact, 0) for prefix in prefixes) is disjoint


@pytest.mark.parametrize(
    ("paths", "kept"),
    [
        (["d/"], [("d/", False)]),
        (["e/", "d/"], [("d/", False), ("e/", False)]),
        (["d/", "d/"], [("d/", False)]),
        (["d", "d"], [("d", True)]),
        (["d/p/", "d/"], [("d/", False)]),
        (["d/p", "d/"], [("d/", False)]),
        (["d", "d/", "d.x"], [("d", True), ("d.x", True), ("d/", False)]),
        (["d/p*", "d/p", "d/p/"], [("d/p", False)]),
        (["*", "d/"], [("", False)]),
    ],
)
def test_a_key_range_inside_another_is_left_out(paths, kept):
    found = key_ranges(7, [expand(path, {}, wildcard=True) for path in paths])
    assert [(one.prefix, one.exact) for one in found] == kept
    assert {one.patient for one in found} == {7}
    assert all(one.prefix == paths[one.path].partition("*")[0] for one in found)


@pytest.mark.parametrize("last", ["!", "~", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"])
def test_whatever_character_a_prefix_ends_with_its_keys_lie_between_its_limits(last):
    """As an external id may end with it; what follows must not be skipped, and S3 gets what UTF-8 can write."""
    one = KeyRange(f"d/{last}", False, 0)
    for key in (one.prefix, f"{one.prefix}/a", f"{one.prefix}\ud7ff"):
        assert one.start_after.encode() < key.encode()
        assert key < one.end
    assert one.start_after < f"d/{last}"
    assert one.end > one.prefix
    assert (last == "\U0010ffff") or one.end <= f"d/{chr(ord(last) + 1)}"
