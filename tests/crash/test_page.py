from __future__ import annotations

from dataclasses import replace

import pytest

from tests.crash import page
from tests.crash.__main__ import main
from tests.crash.run import Expected, Outcome
from tests.crash.scenarios import SCENARIOS, Result

AS_EXPECTED = Outcome({1: 1}, {1: 1}, 1, "success")


def outcome_of(expected: Expected, patients: int) -> Outcome:
    return Outcome({expected.requested: patients}, {expected.requested: patients}, expected.since, expected.ends)


def test_every_scenario_has_a_row_in_the_docs():
    rows = page.PAGE.read_text().splitlines()
    for scenario in SCENARIOS:
        beginning = f"| {scenario.event.text} | {scenario.when} | {scenario.patients} |"
        assert any(row.startswith(beginning) for row in rows), beginning


def test_what_is_written_replaces_the_earlier_results_alone(monkeypatch, tmp_path):
    file = tmp_path / "crashes.md"
    file.write_text(f"# Crashes\n\n{page.BEGIN}\nold\n{page.END}\n\n## After\n")
    monkeypatch.setattr(page, "PAGE", file)
    results = [Result(each, outcome_of(each.expected, each.patients), 1.0) for each in SCENARIOS[:2]]
    results.append(Result(SCENARIOS[2], None, 1.0, "it broke"))
    page.write(results)
    text = file.read_text()
    assert text.startswith(f"# Crashes\n\n{page.BEGIN}\n")
    assert text.endswith(f"{page.END}\n\n## After\n")
    assert "old" not in text
    assert "2 of 3 scenarios ended as expected" in text
    assert "| broke off |  | **wrong**: expected requested and accepted 1" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"requested": {2: 1}, "accepted": {2: 1}},
        {"requested": {2: 1}},
        {"requested": {0: 1}, "accepted": {0: 1}},
        {"since": 2},
        {"since": None},
        {"ends": "failed"},
    ],
)
def test_any_other_outcome_is_wrong(wrong):
    assert Expected().is_met_by(AS_EXPECTED)
    assert not Expected().is_met_by(replace(AS_EXPECTED, **wrong))


def test_patients_may_be_left_out_up_to_a_number_but_not_requested_twice():
    expected = Expected(unsent=1)
    for requested, met in (({1: 24}, True), ({0: 1, 1: 23}, True), ({0: 2, 1: 22}, False), ({1: 23, 2: 1}, False)):
        assert expected.is_met_by(Outcome(requested, requested, 1, "success")) is met


def test_a_refresh_that_must_not_be_requested_is_not():
    expected = Expected(requested=0, since=None, ends="failed")
    assert expected.is_met_by(Outcome({0: 1}, {0: 1}, None, "failed"))
    assert not expected.is_met_by(Outcome({1: 1}, {1: 1}, None, "failed"))


def test_the_page_is_written_by_a_run_of_all_scenarios_only(capsys):
    with pytest.raises(SystemExit):
        main(["--short", "--write"])
    assert "--write is for a run of all scenarios" in capsys.readouterr().err


def test_scenarios_have_names_of_their_own_which_can_be_dag_ids():
    names = [each.name for each in SCENARIOS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
