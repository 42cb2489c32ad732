from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_provider_healthex.client import (
    AddPatientsResult,
    ConsentedPatient,
    PatientUpdate,
    PatientUpdateFailure,
    harmless,
)
from airflow_provider_healthex.client.models import consented_patients, moment, number, parse_json
from airflow_provider_healthex.exceptions import HealthExNotFoundError, HealthExUpdateAmbiguousError

UTC = timezone.utc
NOW = datetime(2026, 11, 22, 17, 40, 5, tzinfo=UTC)


def update(answer: Any) -> PatientUpdate | None:
    return PatientUpdate.from_answer(answer, project_id="p", patient_id="q", organization_id="o", requested_at=NOW)


@pytest.mark.parametrize("value", ["{{ var.value.x }}", "a b", "", "x" * 129, 7, "a\n", ["a"]])
def test_a_string_that_could_be_rendered_is_not_kept(value: Any) -> None:
    assert harmless(value) == "UNRECOGNIZED"


def test_an_id_is_kept() -> None:
    assert harmless("17d4513f-73e8") == "17d4513f-73e8"
    assert harmless(None) is None


@pytest.mark.parametrize("value", [True, "3", None, -1, float("nan"), float("inf"), [1]])
def test_anything_but_a_count_is_ignored(value: Any) -> None:
    assert number(value) is None


def test_a_number_no_float_can_hold_is_ignored() -> None:
    assert number(10**400) is None


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-22T17:40:05Z",
        "2026-11-22T18:40:05+01:00",
        "2026-11-22T17:40:05.000",
        1795369205,
        1795369205.0,
        1795369205000,
        "1795369205",
    ],
)
def test_a_moment_is_read_in_any_form(value: Any) -> None:
    assert moment(value) == NOW


@pytest.mark.parametrize("value", [None, "", "soon", True, -5, float("nan"), 10**30, {}, "0001-01-01", "9" * 5000])
def test_anything_but_a_moment_is_ignored(value: Any) -> None:
    assert moment(value) is None


@pytest.mark.parametrize("body", [b"", b"no", b'{"a": ', b"\xff", b"[" * 100_000, b"9" * 5000])
def test_unreadable_json_is_nothing(body: bytes) -> None:
    assert parse_json(body) is None


def test_a_full_answer() -> None:
    got = update(
        {
            "message": "IN_PROGRESS_NO_ACTION_NEEDED",
            "code": 1,
            "retrievalId": "r-1",
            "skippedFacilitiesCount": 2.0,
            "counts": {"skippedExistingFacilities": 2, "retrievedNewFacilities": 1.0, "other": 3},
            "facilities": [{"name": "General Hospital"}],
        }
    )
    assert got is not None
    assert not got.needs_patient
    assert json.loads(json.dumps(got.to_dict())) == {
        "project_id": "p",
        "patient_id": "q",
        "organization_id": "o",
        "message": "IN_PROGRESS_NO_ACTION_NEEDED",
        "patient_action_needed_reason": None,
        "retrieval_id": "r-1",
        "skipped_facilities_count": 2,
        "counts": {"skippedExistingFacilities": 2, "retrievedNewFacilities": 1.0},
        "requested_at": "2026-11-22T17:40:05+00:00",
    }


def test_the_shortest_answer() -> None:
    got = update({"message": "PATIENT_ACTION_NEEDED"})
    assert got is not None
    assert got.needs_patient
    assert (got.skipped_facilities_count, got.counts, got.retrieval_id) == (0, {}, None)


def test_an_unknown_reason_is_kept_and_a_template_is_not() -> None:
    for reason, kept in (("NEW_REASON", "NEW_REASON"), ("{{ 7 }}", "UNRECOGNIZED")):
        got = update({"message": "PATIENT_ACTION_NEEDED", "patientActionNeededReason": reason})
        assert got is not None
        assert got.patient_action_needed_reason == kept


def test_numbers_that_are_none_are_left_out() -> None:
    counts = {"skippedExistingFacilities": True, "changedExistingFacilities": "3", "skippedNewFacilities": -1}
    got = update({"message": "PATIENT_ACTION_NEEDED", "skippedFacilitiesCount": "2", "counts": counts})
    assert got is not None
    assert (got.skipped_facilities_count, got.counts) == (0, {})


@pytest.mark.parametrize("answer", [None, [], "text", {}, {"message": "DONE"}, {"message": ["x"]}, {"message": None}])
def test_an_answer_that_does_not_say_whether_it_started_is_none(answer: Any) -> None:
    assert update(answer) is None


def test_added_patients_are_named_by_their_index_only() -> None:
    got = AddPatientsResult.from_answer(
        {
            "totalProcessed": 4,
            "successCount": 1,
            "errorCount": 2,
            "duplicatesCount": 1,
            "errors": [
                {"patientIndex": 1, "error": "Li Wu <wu@example.com> is too young"},
                {"patientIndex": None, "error": "Ann is odd"},
                {"patientIndex": 3, "error": {"firstName": "Ann"}},
                "nonsense",
            ],
            "duplicates": [{"patientIndex": 2, "email": "x@example.com"}, 3, "who knows"],
            "successfulPatients": [{"patientIndex": 0, "email": "ann@example.com", "referenceId": "ref-1"}],
        },
        personal=[["Ann"], ["Li", "Wu"]],
    )
    assert got == AddPatientsResult(
        total_processed=4,
        success_count=1,
        error_count=2,
        duplicates_count=1,
        errors=((1, "*** *** <***> is too young"), (None, "*** is odd"), (3, "")),
        duplicates=(2, 3),
        successful_patients=((0, "ref-1"),),
    )


def test_missing_totals_follow_from_the_lists() -> None:
    got = AddPatientsResult.from_answer({"errors": [{"patientIndex": 0, "error": "no"}], "successfulPatients": [{}]})
    assert got is not None
    assert (got.total_processed, got.success_count, got.error_count, got.duplicates_count) == (2, 1, 1, 0)
    assert got.successful_patients == ((None, None),)


def consent(**changes: Any) -> dict[str, Any]:
    return {
        "consentType": "PATIENT_DIRECTED_DATA_EXCHANGE",
        "studyId": "p",
        "hasPatientConsented": True,
        "expirationTimestamp": "2027-01-01T00:00:00Z",
        **changes,
    }


def test_only_who_has_consented_to_this_project_is_listed() -> None:
    rows = [
        {"patientId": "yes", "healthcareOrganizationId": "h", "consents": [consent()]},
        {"patientId": "no", "consents": [consent(hasPatientConsented=False)]},
        {"patientId": "perhaps", "consents": [consent(hasPatientConsented="true")]},
        {"patientId": "elsewhere", "consents": [consent(studyId="q")]},
        {"patientId": "other-type", "consents": [consent(consentType="RESEARCH")]},
        {"patientId": "none", "consents": []},
        {"patientId": "unsaid", "consents": [{"hasPatientConsented": True}]},
        {"patientId": "broken", "consents": "x"},
        None,
    ]
    patients, left_out = consented_patients(rows, "p")
    assert [patient.patient_id for patient in patients] == ["yes", "unsaid"]
    assert (patients[0].healthcare_organization_id, patients[0].expires_at) == ("h", datetime(2027, 1, 1, tzinfo=UTC))
    assert patients[1].expires_at is None
    assert left_out == 0


def test_a_patient_is_listed_once_with_the_latest_expiry() -> None:
    rows = [
        {
            "patientId": "a",
            "healthcareOrganizationId": "h1",
            "consents": [consent(), consent(expirationTimestamp=1830297600)],
        },
        {"patientId": "b", "consents": [consent(expirationTimestamp="?")]},
        {"patientId": "a", "healthcareOrganizationId": "h2", "consents": [consent()]},
    ]
    patients, _ = consented_patients(rows, "p")
    assert [patient.patient_id for patient in patients] == ["a", "b"]
    assert patients[0].expires_at == datetime(2028, 1, 1, tzinfo=UTC)
    assert patients[0].healthcare_organization_id == "h1"


@pytest.mark.parametrize("patient_id", ["{{ conn }}", "a/b", "..", "", None, 7])
def test_an_id_that_cannot_be_used_is_left_out_and_counted(patient_id: Any) -> None:
    assert consented_patients([{"patientId": patient_id, "consents": [consent()]}], "p") == ([], 1)


# The stored form

DONE = update({"message": "IN_PROGRESS_NO_ACTION_NEEDED", "counts": {"retrievedNewFacilities": 1}})
RESULTS: list[Any] = [
    DONE,
    PatientUpdateFailure("p", "q", HealthExNotFoundError("x", status_code=404, detail="Ann is unknown")),
    PatientUpdateFailure("p", "q", HealthExUpdateAmbiguousError("x", requested_at=NOW)),
    AddPatientsResult(2, 1, 1, 0, ((1, "Ann's phone 555-1234 is wrong"),), (), ((0, "ref-1"),)),
    ConsentedPatient("q", "o", NOW),
    ConsentedPatient("q", None, None),
]


@pytest.mark.parametrize("result", RESULTS)
def test_a_result_is_the_dict_that_is_stored(result: Any) -> None:
    stored = json.loads(json.dumps([result]))[0]
    assert stored == result.to_dict() == dict(result)
    assert "Ann" not in json.dumps(result)
    assert repr(result).startswith(f"{type(result).__name__}(")


def test_a_failure_is_stored_as_the_class_of_its_error() -> None:
    assert (RESULTS[1]["status_code"], RESULTS[1]["error"]) == (404, "HealthExNotFoundError")
    assert dict(RESULTS[2])["requested_at"] == NOW.isoformat()


def test_an_added_patient_s_error_is_stored_by_index() -> None:
    assert dict(RESULTS[3])["errors"] == [{"patient_index": 1}]
    assert RESULTS[3].errors[0][1].startswith("Ann's")


@pytest.mark.parametrize("result", [each for each in RESULTS if not isinstance(each, PatientUpdateFailure)])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_a_result_can_be_copied_and_compared(result: Any, copied: Any) -> None:
    again = copied(result)
    assert type(again) is type(result)
    assert again == result
    assert dict(again) == dict(result)
    assert hash(again) == hash(result)


def test_a_copy_with_another_moment_is_stored_with_it() -> None:
    assert DONE is not None
    later = dataclasses.replace(DONE, requested_at=NOW + timedelta(hours=1))
    assert later["requested_at"] == later.to_dict()["requested_at"] != DONE["requested_at"]
    assert later != DONE


@pytest.mark.parametrize("change", [lambda it: it.update(a=1), lambda it: it.clear(), lambda it: it.pop("a")])
def test_a_result_does_not_change(change: Any) -> None:
    with pytest.raises(TypeError, match="can't be changed"):
        change(DONE)
