from __future__ import annotations

from datetime import timedelta

import pytest
from helpers.keys import NOW, account, deliveries

from airflow_provider_healthex.check import advice
from airflow_provider_healthex.check.behaviour import NEW_NAMES, OPEN, find_behaviour
from airflow_provider_healthex.check.layout import explain, find_layout
from airflow_provider_healthex.check.patterns import KnownIds
from airflow_provider_healthex.delivery import StoredObject


def behaviour_of(name: str, patients: int = 12, **how):
    ids, pairs = account(patients)
    rows = deliveries(name, pairs, **how)
    best = find_layout(rows, ids).best
    return find_behaviour(explain(best.path, best.wildcard, rows, ids).rows, ids, NOW)


def of(files: dict[str, list[tuple[str, float]]]):
    """The behaviour of patients' files, each a key and its age in seconds."""
    ids = KnownIds(frozenset(files))
    rows = {
        patient: [StoredObject(f"d/{patient}/{name}", NOW - timedelta(seconds=age), 10) for name, age in each]
        for patient, each in files.items()
    }
    return find_behaviour(rows, ids, NOW)


def test_one_object_shows_no_pause_and_gives_no_number():
    found = behaviour_of("one file")
    assert (found.deliveries, dict(found.objects), found.longest_pause) == (12, {1: 12}, None)
    assert not found.shows_pauses
    assert advice.quiet_period(found) is None


def test_several_objects_show_how_long_a_delivery_takes_and_pauses():
    found = behaviour_of("several", pause=40)
    assert (found.seconds, found.longest_pause, found.fixed_count) == (80, 40, 3)
    assert advice.quiet_period(found) == 90


def test_the_quiet_period_has_a_least():
    assert advice.quiet_period(behaviour_of("several", pause=1)) == 60


def test_every_earlier_delivery_counts_where_names_are_new():
    found = behaviour_of("retrieval below")
    assert (found.naming, found.deliveries, dict(found.objects)) == (NEW_NAMES, 36, {2: 36})


@pytest.mark.parametrize("name", ["one file", "several", "marker", "exact name", "external"])
def test_an_overwrite_is_left_open_since_a_listing_cannot_show_it(name):
    found = behaviour_of(name)
    assert found.naming == OPEN
    assert "names are fixed" in found.naming_reason


@pytest.mark.parametrize("name", ["dated", "name and time", "day before", "nested days"])
def test_dates_in_names_are_new_names(name):
    assert behaviour_of(name).naming == NEW_NAMES


def test_new_names_that_were_seen_once_stay_open():
    found = behaviour_of("dated", times=1)
    assert found.naming == OPEN
    assert "names hold a date" in found.naming_reason


def test_a_marker_is_found_where_it_always_comes_last():
    found = behaviour_of("marker")
    assert (found.marker.name, found.marker.deliveries, found.marker.is_likely) == ("_DONE", 12, True)


def test_the_last_of_a_numbered_row_is_no_marker():
    files = {f"p{n}": [("b-1.json", 90), ("b-2.json", 80), ("b-3.json", 70)] for n in range(9)}
    assert of(files).marker is None


def test_a_name_that_comes_last_and_is_called_nothing_special_is_not_advised():
    files = {f"p{n}": [("a.json", 90), ("b.json", 80)] for n in range(9)}
    found = of(files)
    assert (found.marker.name, found.marker.is_likely) == ("b.json", False)


def test_a_name_that_once_came_earlier_is_no_marker():
    files = {f"p{n}": [("a.json", 90), ("_DONE", 80)] for n in range(9)}
    files["p9"] = [("a.json", 70), ("_DONE", 80)]
    assert of(files).marker is None


def test_a_pause_that_could_be_either_gives_no_number():
    files = {f"p{n}": [("a.json", 9000 + 40), ("b.json", 9000)] for n in range(9)}
    files["p9"] = [("a.json", 9000), ("b.json", 9000 - 3600)]
    found = of(files)
    assert found.unclear == 1
    assert advice.quiet_period(found) is None
    assert "too long for one delivery and too short for two" in advice.thin_pauses(found)


def test_folders_of_one_retrieval_settle_what_a_long_pause_is():
    one, two = "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "7aa55513-7620-5ead-b224-cfa3d18569b3"
    files = {f"p{n}": [(f"{one}/a.json", 9000), (f"{one}/b.json", 5400), (f"{two}/a.json", 60)] for n in range(9)}
    found = of(files)
    assert (found.unclear, found.longest_pause, found.naming) == (0, 3600, NEW_NAMES)


@pytest.mark.parametrize(("patients", "times"), [(2, 3), (1, 9), (4, 1)])
def test_few_patients_or_deliveries_give_no_number(patients, times):
    found = behaviour_of("retrieval below", patients, times=times)
    assert advice.quiet_period(found) is None
    assert found.fixed_count is None


def test_a_count_that_varies_is_no_min_objects():
    files = {f"p{n}": [("a.json", 90), ("b.json", 80), ("c.json", 70)][: 2 + n % 2] for n in range(9)}
    assert of(files).fixed_count is None


def test_names_that_one_patient_alone_has_are_not_shown():
    files = {f"p{n}": [("bundle.json", 90)] for n in range(9)}
    files["p9"] = [("Jane-Doe.pdf", 90)]
    found = of(files)
    assert (found.names, found.other_names) == ((("bundle.json", 9),), 1)


def test_the_age_of_each_patients_newest_object():
    files = {"p1": [("a", 60), ("b", 600)], "p2": [("a", 7200)], "p3": [("a", 86_400)]}
    assert of(files).ages == (60, 7200, 86_400)


def test_nothing_has_no_behaviour():
    assert of({}) is None


def test_a_longer_pause_than_the_sensors_default_contradicts_it():
    ids, pairs = account()
    rows = deliveries("several", pairs, pause=400)
    layout = find_layout(rows, ids)
    found = find_behaviour(explain(layout.best.path, False, rows, ids).rows, ids, NOW)
    told = advice.assumptions(layout, layout.best, found, skew=None, clocks_known=True, patients=12, in_order=True)
    assert [each.status for each in told if each.text.startswith("No pause")] == ["contradicted"]
    assert advice.quiet_period(found) == 810


@pytest.mark.parametrize(("store", "healthex", "skew"), [(0, 1, None), (-5, 0.5, 7), (60, 0, None), (None, 0, None)])
def test_a_store_whose_clock_is_behind_needs_more_clock_skew(store, healthex, skew):
    assert advice.clock_skew(store, healthex) == skew
