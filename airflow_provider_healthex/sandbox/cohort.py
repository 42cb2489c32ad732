"""A cohort of any size: its patients' ids and the outcome of each, drawn from a seed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

from airflow_provider_healthex.sandbox.patients import ACTION_REASONS, File, Scenario, external_id_of

#: Days within which the consents of a cohort end, spread evenly; expired ones have ended within the last 30.
CONSENT_DAYS = 365


@dataclass(frozen=True)
class OutcomeShare:
    """
    The outcome of a part of a cohort.

    :param name: a line of text.
    :param per_thousand: how many of 1,000 patients have it.
    :param scenario: without a patient's id.
    """

    name: str
    per_thousand: int
    scenario: Scenario


def _outcome(name: str, per_thousand: int, **scenario: object) -> OutcomeShare:
    return OutcomeShare(name, per_thousand, Scenario("", name, brief=True, **scenario))  # type: ignore[arg-type]


#: Of 1,000 patients. An update of the first five groups is accepted.
OUTCOMES = (
    _outcome("in progress: the earlier delivery is overwritten", 890),
    _outcome("in progress: nothing was delivered before", 20, delivered_before=False),
    _outcome("in progress: two files, 1 and 1.5 delays after the request", 10,
             files=(File("bundle-1.json"), File("bundle-2.json", 1.5))),
    _outcome("partial: 2 facilities are skipped", 20, skipped_facilities=2),
    _outcome("nothing has changed, and nothing is delivered", 20, files=()),
    *(_outcome(reason, 5, reason=reason, revoked=reason == "CONSENT_REVOKED") for reason in ACTION_REASONS),
    # Listed with a consent, and gone at the request: as after a withdrawal between the two.
    _outcome("404: consented, and no longer in the project", 10,
             error=(404, "Recruitment not found"), files=(), delivered_before=False),
)  # fmt: skip


def cohort_scenarios(size: int, seed: int) -> list[Scenario]:
    """
    Return the scenarios of ``patient-00001`` and on: for the same size and seed always the same.

    :param size: how many. Each outcome has its share of them, rounded, so a small cohort lacks the rare ones.
    :param seed: of the outcomes and the ends of the consents.
    """
    if size < 0:
        raise ValueError(f"cohort must be at least 0 patients (got {size})")
    drawn = random.Random(seed)
    scenarios = [each.scenario for each in OUTCOMES for _ in range(_share(each, size))]
    drawn.shuffle(scenarios)
    return [_numbered(number, scenario, drawn) for number, scenario in enumerate(scenarios, 1)]


def describe(scenarios: list[Scenario]) -> str:
    """Return how many patients of a cohort have which outcome, as text."""
    counted = Counter(each.summary for each in scenarios)
    first, last = scenarios[0].patient_id, scenarios[-1].patient_id
    lines = [f"{counted[each.name]:7,}  {each.name}" for each in OUTCOMES if counted[each.name]]
    span = f"{first} to {last} ({external_id_of(first)} to {external_id_of(last)})"
    return "\n".join([f"and the cohort {span}, of them:", *lines])


def _share(outcome: OutcomeShare, size: int) -> int:
    # The difference of rounded sums: the parts add up to the whole.
    before = sum(each.per_thousand for each in OUTCOMES[: OUTCOMES.index(outcome)])
    return round(size * (before + outcome.per_thousand) / 1000) - round(size * before / 1000)


def _numbered(number: int, scenario: Scenario, drawn: random.Random) -> Scenario:
    days: int | None = drawn.randint(1, CONSENT_DAYS)
    if scenario.reason == "CONSENT_EXPIRED":
        days = -drawn.randint(1, 30)
    elif scenario.reason == "CONSENT_NOT_FOUND":
        days = None
    return replace(scenario, patient_id=f"patient-{number:05}", consent_days=days)
