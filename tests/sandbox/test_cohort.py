from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from helpers.sandbox import Caller

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.cohort import OUTCOMES, cohort_scenarios, describe

THOUSAND = cohort_scenarios(1000, seed=7)


def test_the_same_seed_gives_the_same_patients():
    assert cohort_scenarios(1000, seed=7) == THOUSAND
    assert cohort_scenarios(1000, seed=8) != THOUSAND


def test_ids_are_numbered_from_one():
    assert [each.patient_id for each in THOUSAND[:2]] == ["patient-00001", "patient-00002"]
    assert THOUSAND[-1].patient_id == "patient-01000"
    assert THOUSAND[-1].external_id == "ext-01000"


def test_of_a_thousand_each_outcome_has_its_share():
    counted = Counter(each.summary for each in THOUSAND)
    assert counted == {each.name: each.per_thousand for each in OUTCOMES}
    assert sum(each.per_thousand for each in OUTCOMES) == 1000


@pytest.mark.parametrize("size", [0, 1, 7, 99, 1234])
def test_a_cohort_has_the_given_number_of_patients(size):
    assert len(cohort_scenarios(size, seed=1)) == size


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match=r"cohort must be at least 0 patients \(got -1\)"):
        cohort_scenarios(-1, seed=7)


def test_it_is_described_by_how_many_have_which_outcome():
    text = describe(THOUSAND)
    assert "patient-00001 to patient-01000 (ext-00001 to ext-01000)" in text
    assert "    890  in progress" in text
    assert "      5  CONSENT_REVOKED" in text
    assert "404" not in describe(cohort_scenarios(5, seed=7))


@pytest.fixture(scope="module")
def cohort():
    with Sandbox(cohort=200, seed=7, delay=0) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def answers(cohort):
    call = Caller(cohort)
    return {patient_id: call.update(patient_id) for patient_id in cohort.cohort}


def test_every_patient_answers_as_the_scenario_says(cohort, answers):
    for patient_id, answer in answers.items():
        scenario = cohort.scenario(patient_id)
        assert answer.status_code == (scenario.error[0] if scenario.error else 201)
        assert answer.json().get("patientActionNeededReason") == scenario.reason
        assert answer.json().get("skippedFacilitiesCount", 0) == scenario.skipped_facilities
    assert Counter(answer.status_code for answer in answers.values()) == {201: 198, 404: 2}


def test_every_patient_was_requested_once(cohort, answers):
    assert cohort.asked_by_patient() == Counter(cohort.cohort)


def test_the_earlier_deliveries_are_old_and_the_refreshes_are_not(cohort, answers):
    cohort.wait_until_delivered()
    pages = cohort.s3_client().get_paginator("list_objects_v2").paginate(Bucket=cohort.bucket)
    age = {row["Key"]: datetime.now(timezone.utc) - row["LastModified"] for page in pages for row in page["Contents"]}
    for patient_id in cohort.cohort:
        scenario = cohort.scenario(patient_id)
        found = [seen for key, seen in age.items() if key.startswith(cohort.prefix(patient_id))]
        refreshed = bool(scenario.files) and not scenario.reason
        assert len(found) == (len(scenario.file_names) if scenario.delivered_before or refreshed else 0)
        assert all((seen < timedelta(days=1)) == refreshed for seen in found)


def test_the_consents_list_holds_them_with_the_end_of_each(cohort):
    body = {"consentTypes": ["PATIENT_DIRECTED_DATA_EXCHANGE"], "studyId": "project-demo"}
    listed = {
        each["patientId"]: each["consents"][0] for each in Caller(cohort)("POST", "/v1/consents", json=body).json()
    }
    now = datetime.now(timezone.utc)
    for patient_id in cohort.cohort:
        days = cohort.scenario(patient_id).consent_days
        assert (days is None) == (patient_id not in listed)
        if days is not None:
            ends = datetime.fromisoformat(listed[patient_id]["expirationTimestamp"])
            assert timedelta(days=days - 1) < ends - now < timedelta(days=days + 1)


def test_ten_thousand_patients_start_in_seconds():
    began = time.monotonic()
    with Sandbox(cohort=10_000) as sandbox:
        assert time.monotonic() - began < 20  # 3 s alone on 2 cores
        assert len(sandbox.cohort) == 10_000
        assert Caller(sandbox)("GET", "/_sandbox/state").json()["patients"]["patient-10000"]["asked"] == 0


def test_it_can_begin_with_an_empty_bucket():
    with Sandbox(cohort=10, delay=0, earlier_deliveries=False) as sandbox:
        assert sandbox.s3_client().list_objects_v2(Bucket=sandbox.bucket)["KeyCount"] == 0


def test_spread_deliveries_come_at_moments_that_the_seed_decides():
    moments = [delivered_after(seed) for seed in (7, 7, 8)]
    assert moments[0] == pytest.approx(moments[1], abs=0.25)
    assert moments[0] != pytest.approx(moments[2], abs=0.25)
    assert max(moments[0]) - min(moments[0]) > 0.4


def delivered_after(seed: int) -> list[float]:
    """Return after how many seconds each of five deliveries came."""
    came: dict[str, float] = {}
    began = time.monotonic()

    def note(event, details):
        if event == "delivered":
            came[details["patient_id"]] = time.monotonic() - began

    with Sandbox(cohort=5, seed=seed, delay=0, spread=1, on_event=note) as sandbox:
        call = Caller(sandbox)
        began = time.monotonic()
        for patient_id in sandbox.cohort:
            call.update(patient_id)
        sandbox.wait_until_delivered()
    return [came.get(patient_id, -1) for patient_id in sandbox.cohort]


def test_sixteen_callers_at_once_each_wait_the_latency_alone():
    with Sandbox(cohort=64, delay=60, latency=0.1) as sandbox, ThreadPoolExecutor(16) as threads:
        callers = [Caller(sandbox) for _ in range(16)]
        began = time.monotonic()
        list(threads.map(lambda n: callers[n % 16].update(sandbox.cohort[n]), range(64)))
        took = time.monotonic() - began
    assert 0.4 <= took < 2  # one after the other they would take 6.4 s
