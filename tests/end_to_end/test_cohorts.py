"""Cohorts on an Airflow with its own processes: a killed worker, a killed triggerer, and a watcher."""

from __future__ import annotations

import re
import time
from collections import Counter
from datetime import datetime

import pytest
from helpers.running import HAS_STATE_STORE, HAS_WATCHERS, wait_for

from airflow_provider_healthex.sandbox import patients

pytestmark = pytest.mark.timeout(400)

CONCURRENCY = 8


@pytest.mark.skipif(not HAS_WATCHERS, reason="Airflow 2 has no AssetWatcher")
def test_who_shares_by_themselves_starts_a_run(real_airflow, begun):
    for patient_id in (patients.CONSENT_ENDS_SOON, patients.UNLOCKED_OR_NO_TARGETED_LIST):
        real_airflow.sandbox.deliver(patient_id)
        wait_for(
            f"a run has worked on {patient_id}", lambda patient_id=patient_id: real_airflow.processed()[patient_id]
        )
        assert real_airflow.sandbox.asked(patient_id) == 0
    assert real_airflow.processed()[patients.CONSENT_ENDS_SOON] == 1


@pytest.mark.skipif(not HAS_STATE_STORE, reason="below Airflow 3.3 nothing survives a killed worker: documented")
def test_the_retry_of_a_killed_worker_asks_for_the_rest_alone(real_airflow, begun):
    assert 200 <= begun.asked_when_killed < len(begun.asked_for)
    assert real_airflow.wait("killed_cohort") == "success"
    assert real_airflow.query("select try_number from task_instance where run_id = 'killed_cohort'") == [(2,)]

    result = real_airflow.result("killed_cohort", "refresh")
    listed = [*result["in_progress"], *result["patient_action_needed"], *result["failed"]]
    assert sorted(each["patient_id"] for each in listed) == sorted(begun.asked_for)
    ambiguous = {each["patient_id"] for each in result["in_progress"] if each.get("ambiguous")}
    # In flight, and a quarter more in hand.
    assert len(ambiguous) <= CONCURRENCY * 5 / 4
    asked = real_airflow.sandbox.asked_by_patient()
    assert {asked[each] for each in begun.asked_for if each not in ambiguous} == {1}
    assert {asked[each] for each in ambiguous} <= {0, 1}


def test_a_killed_triggerer_leaves_the_cohorts_deadline_and_the_announcements_as_they_are(real_airflow, begun):
    everybody, most = begun.quiet[:3], begun.quiet[3:6]
    real_airflow.trigger("cohort_waits", "cohort_waits", all=everybody, most=most)
    wait_for(
        "the triggerer has poked for both cohorts",
        lambda: {name for name, _ in deadlines(real_airflow)} == {"all", "most"},
    )
    rows = trigger_rows(real_airflow)
    assert len(rows) == 2
    announced = wait_until_all_is_announced(real_airflow) if HAS_WATCHERS else Counter()

    real_airflow.kill_triggerer()
    before = deadlines(real_airflow)
    for patient_id in [*everybody[1:], *most[:2], patients.AUTHENTICATION_NEEDED_NEW_FACILITY]:
        real_airflow.sandbox.deliver(patient_id)
    assert trigger_rows(real_airflow) == rows
    real_airflow.start_triggerer()
    wait_for("the second triggerer has poked", lambda: len(deadlines(real_airflow)) > len(before))
    real_airflow.sandbox.deliver(everybody[0])

    assert real_airflow.wait("cohort_waits") == "success"
    found = {name: real_airflow.result("cohort_waits", name) for name in ("all", "most")}
    assert [each["patient_id"] for each in found["all"]["arrived"]] == everybody
    assert [each["patient_id"] for each in found["most"]["arrived"]] == most[:2]
    assert found["most"]["missing"] == most[2:]
    after = deadlines(real_airflow)
    for name in ("all", "most"):
        moments = [moment for task_id, moment in after if task_id == name]
        assert max(moments) - min(moments) < 4, moments
    assert all(real_airflow.sandbox.asked(each) == 1 for each in (*everybody, *most))

    if HAS_STATE_STORE:
        meanwhile = Counter([*everybody, *most[:2], patients.AUTHENTICATION_NEEDED_NEW_FACILITY])
        wait_for("what came meanwhile is announced", lambda: meanwhile <= real_airflow.processed())
        assert real_airflow.processed() == announced + meanwhile
        assert max(Counter(real_airflow.announced()).values()) == 1


def deadlines(real_airflow) -> list[tuple[str, float]]:
    """Return the deadline that each line of the triggerers' logs speaks of, with its task."""
    found = []
    for file, text in real_airflow.logs("*cohort_waits*/**/*.trigger.*").items():
        for moment, *left in re.findall(r"(\d{4}-\d\d-\d\dT[^\s\"\]]+).*, (\d+):(\d\d):(\d\d) until the timeout", text):
            hours, minutes, seconds = map(int, left)
            if hours or minutes or seconds:  # at the deadline there is no less
                written = datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
                found.append((re.search(r"task_id=(\w+)", file)[1], written + hours * 3600 + minutes * 60 + seconds))
    return found


def trigger_rows(real_airflow) -> list[tuple[object, ...]]:
    return real_airflow.query(
        "select trigger.id, kwargs from trigger join task_instance on task_instance.trigger_id = trigger.id "
        "where run_id = 'cohort_waits' order by trigger.id"
    )


def wait_until_all_is_announced(real_airflow) -> Counter[str]:
    """Wait until what has been delivered is announced and worked on, and return how often each patient was."""
    real_airflow.sandbox.wait_until_delivered()
    wait_for("all is announced", lambda: real_airflow.newest_objects() <= set(real_airflow.announced()))
    if HAS_STATE_STORE:
        wait_for("it is noted", lambda: noted_at(real_airflow) > last_event_at(real_airflow))
    else:
        time.sleep(8)
    wait_for(
        "its runs have ended",
        lambda: (
            not real_airflow.query(
                "select 1 from dag_run where dag_id = 'on_delivery' and state in ('queued', 'running')"
            )
        ),
    )
    assert max(Counter(real_airflow.announced()).values()) == 1
    return real_airflow.processed()


def noted_at(real_airflow) -> str:
    return real_airflow.query("select max(updated_at) from asset_state_store")[0][0]


def last_event_at(real_airflow) -> str:
    return real_airflow.query("select max(timestamp) from asset_event")[0][0]
