from __future__ import annotations

import random

import pytest
from helpers.keys import LAYOUTS, NOW, PROJECT, account, deliveries, unrelated

from airflow_provider_healthex.check.layout import explain, find_layout
from airflow_provider_healthex.check.path import check_path
from airflow_provider_healthex.check.patterns import KnownIds, Reader, readable
from airflow_provider_healthex.delivery import StoredObject
from airflow_provider_healthex.delivery.template import expand


def objects(*keys: str) -> list[StoredObject]:
    return [StoredObject(key, NOW, 1) for key in keys]


def paths(rows, ids):
    return [template.path for template in find_layout(rows, ids).templates]


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_found(name):
    ids, pairs = account()
    _, path, wildcard = LAYOUTS[name]
    rows = deliveries(name, pairs)
    best = find_layout(rows, ids).best
    assert (best.path, best.wildcard) == (path, wildcard)
    assert (best.patients, best.objects, best.strangers) == (len(pairs), len(rows), 0)
    assert not best.is_thin


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_neither_order_nor_other_objects_change_what_is_found(name, seed):
    ids, pairs = account(seed=seed)
    rows = [*deliveries(name, pairs), *unrelated(2_000, seed + 100)]
    random.Random(seed).shuffle(rows)
    best = find_layout(rows, ids).best
    assert (best.path, best.patients) == (LAYOUTS[name][1], len(pairs))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_path_gives_each_patient_their_own_objects(name):
    ids, pairs = account()
    rows = deliveries(name, pairs)
    best = find_layout(rows, ids).best
    for patient, external in pairs:
        values = {"orgId": "org-77aa01", "projectId": PROJECT, "healthexPatientId": patient, "externalId": external}
        target = expand(best.path, values, wildcard=best.wildcard)
        own = {row.key for row in rows if patient in row.key or external in row.key}
        assert {row.key for row in rows if target.matches(row.key)} == own


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_of_another_account_are_not_found(name):
    _, pairs = account(seed=1)
    strangers, _ = account(seed=2)
    assert paths(deliveries(name, pairs), KnownIds(strangers.patients, frozenset(), strangers.projects)) == []


def test_shuffled_ids_are_not_found():
    ids, pairs = account()
    drawn = random.Random(0)
    shuffled = frozenset("".join(drawn.sample(id_, len(id_))) for id_ in ids.patients)
    assert paths(deliveries("one file", pairs), KnownIds(shuffled - ids.patients, projects=ids.projects)) == []


def test_an_empty_bucket_has_no_layout():
    ids, _ = account()
    assert find_layout([], ids).templates == ()


def test_folder_markers_are_no_objects():
    ids, pairs = account()
    rows = [StoredObject(f"d/{patient}/", NOW, 0) for patient, _ in pairs]
    assert (find_layout(rows, ids).objects, paths(rows, ids)) == (0, [])


def test_a_date_that_was_seen_once_is_still_no_fixed_part():
    ids, pairs = account()
    rows = objects(*(f"d/2026-11-02/{patient}/b.json" for patient, _ in pairs))
    assert paths(rows, ids) == ["d/*/{healthexPatientId}/"]


def test_an_id_that_is_the_same_for_all_is_a_fixed_part():
    ids, pairs = account()
    tenant = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"
    rows = objects(*(f"{tenant}/v2/{patient}/b.json" for patient, _ in pairs))
    assert paths(rows, ids) == [f"{tenant}/v2/{{healthexPatientId}}/"]


def test_a_folder_that_differs_in_many_ways_becomes_a_star():
    ids, pairs = account()
    rows = objects(*(f"d/site-{'abcdef'[n % 6]}/{patient}/b.json" for n, (patient, _) in enumerate(pairs)))
    assert paths(rows, ids) == ["d/*/{healthexPatientId}/"]


def test_short_numbers_are_not_taken_for_ids():
    ids = KnownIds(frozenset({"1", "2", "3", "2026"}), projects=frozenset([PROJECT]))
    rows = objects(*(f"d/{n}/part-{n % 4}.json" for n in range(40)), *(f"e/2026-11-0{n}_x.json" for n in range(1, 9)))
    assert paths(rows, ids) == []


def test_short_ids_are_found_where_they_are_all_there_is():
    ids = KnownIds(frozenset({"101", "102", "103", "104"}), projects=frozenset([PROJECT]))
    assert paths(objects(*(f"d/{n}/bundle.json" for n in (101, 102, 103, 104))), ids) == ["d/{healthexPatientId}/"]


def test_an_id_that_begins_another_does_not_take_its_objects():
    ids = KnownIds(frozenset({"patient-1", "patient-1-2", "patient-10"}))
    rows = objects("d/patient-1/b.json", "d/patient-1-2/b.json", "d/patient-10/b.json")
    found = explain("d/{healthexPatientId}/", False, rows, ids)
    assert {patient: len(each) for patient, each in found.rows.items()} == dict.fromkeys(ids.patients, 1)
    assert paths(rows, ids) == ["d/{healthexPatientId}/"]


def test_a_key_with_two_patients_belongs_to_nobody():
    ids, ((one, _), (two, _)) = account(2)
    layout = find_layout(objects(f"d/{one}/{two}.json"), ids)
    assert (layout.templates, layout.several_patients) == ((), 1)


def test_former_patients_are_counted_as_strangers():
    ids, pairs = account()
    rows = [*deliveries("one file", pairs), *objects(f"d/{PROJECT}/nobody-any-more/bundle.json")]
    best = find_layout(rows, ids).best
    assert (best.patients, best.strangers) == (12, 1)


def test_objects_of_another_project_are_not_counted():
    ids, pairs = account()
    rows = [*deliveries("one file", pairs), *objects(*(f"d/other-project/{patient}/b.json" for patient, _ in pairs))]
    best = find_layout(rows, ids).best
    assert (best.path, best.objects, best.strangers) == ("d/{projectId}/{healthexPatientId}/", 12, 0)


@pytest.mark.parametrize("size", [1, 2])
def test_one_or_two_patients_are_thin_evidence(size):
    ids, pairs = account(size)
    best = find_layout(deliveries("one file", pairs), ids).best
    assert (best.path, best.is_thin) == ("d/{projectId}/{healthexPatientId}/", True)


def test_what_one_patients_path_alone_says_is_masked():
    ids, pairs = account(1)
    rows = objects(f"d/Doe-Jane-1971/{pairs[0][0]}/b.json")
    best = find_layout(rows, ids).best
    assert best.shown() == "d/D…/{healthexPatientId}/"
    assert best.shown(show_ids=True) == "d/Doe-Jane-1971/{healthexPatientId}/"


def test_ids_in_another_case_are_noticed():
    ids, pairs = account()
    rows = [row._replace(key=row.key.upper()) for row in deliveries("one file", pairs)]
    layout = find_layout(rows, ids)
    assert (layout.templates, layout.other_case) == ((), True)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("a/bundle-12.json", "a/bundle-<n>.json"),
        ("a/2026-11-02T10:15:02Z.json", "a/<time>.json"),
        ("a/20261102/x", "a/<date>/x"),
        ("a/2026/11/02/x", "a/<year>/<month>/<day>/x"),
        ("a/year=2026/month=1/x", "a/year=<year>/month=<month>/x"),
        ("a/3f2504e0-4f89-11d3-9a0c-0305e82c3301/x", "a/<uuid>/x"),
        ("a/f9a3bc88e1d2aa.json", "a/<hex>.json"),
    ],
)
def test_dates_numbers_and_ids_are_replaced(key, shape):
    assert "/".join(readable(segment.shape) for segment in Reader(KnownIds()).segments(key)) == shape


# --- a path that was given


@pytest.fixture
def given():
    ids, pairs = account(37)
    rows = deliveries("several", pairs[:35])
    layout = find_layout(rows, ids)
    return lambda path: check_path(path, rows, ids, layout, 37)


def test_a_path_that_is_right_says_whom_it_matches(given):
    checked = given("in/{orgId}/{healthexPatientId}/")
    assert (checked.problem, checked.template.patients, checked.template.objects) == ("", 35, 105)


def test_a_path_without_its_slash_says_what_lies_below(given):
    checked = given("in/{orgId}/{healthexPatientId}")
    assert checked.problem.endswith("ends without '/' and means one key: 105 objects lie below it")
    assert checked.advice == "write 'in/{orgId}/{healthexPatientId}/'"


def test_a_wrong_path_says_which_one_matches(given):
    checked = given("deliveries/{healthexPatientId}/")
    assert checked.problem == "'deliveries/{healthexPatientId}/' matches 0 of 37 patients"
    assert checked.advice == "'in/{orgId}/{healthexPatientId}/' matches 35 of 37"


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/in/{orgId}/{healthexPatientId}/", "begins with '/', and no key does"),
        ("in/{{orgId}}/{healthexPatientId}/", "{{orgId}}"),
        ("in/${orgId}/{healthexPatientId}/", "$"),
        ("in/{date}/{healthexPatientId}/", "{date}"),
        ("in/{orgId}/", "does not name the patient"),
        ("in/{orgId}/*{healthexPatientId}/", "stands next to {healthexPatientId}"),
        ("", "path is ''"),
    ],
)
def test_a_path_that_cannot_be_used_says_why(given, path, problem):
    assert problem in given(path).problem


def test_a_path_with_the_studys_ids_needs_them():
    ids, pairs = account()
    rows = deliveries("external", pairs)
    without = KnownIds(ids.patients, projects=ids.projects)
    checked = check_path("d/{projectId}/{externalId}/", rows, without, find_layout(rows, without), 12)
    assert "needs {externalId}" in checked.problem
    assert "--external-ids" in checked.advice
