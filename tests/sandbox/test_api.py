from __future__ import annotations

import re
import time
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import jwt
import pytest

from airflow_provider_healthex.sandbox import Sandbox, patients

ACTION_NEEDED = {
    patients.CONSENT_EXPIRED: "CONSENT_EXPIRED",
    patients.CONSENT_NOT_FOUND: "CONSENT_NOT_FOUND",
    patients.CONSENT_REVOKED: "CONSENT_REVOKED",
    patients.UNLOCKED_OR_NO_TARGETED_LIST: "UNLOCKED_OR_NO_TARGETED_LIST",
    patients.AUTHENTICATION_EXPIRED: "AUTHENTICATION_EXPIRED",
    patients.AUTHENTICATION_NEEDED_NEW_FACILITY: "AUTHENTICATION_NEEDED_NEW_FACILITY",
    patients.NEW_REASON: patients.INVENTED_REASON,
}
ACCEPTED = (
    patients.IN_PROGRESS,
    patients.FIRST_DELIVERY,
    patients.PARTIAL,
    patients.SEVERAL_FILES,
    patients.NOTHING_CHANGED,
    patients.LATE_TAIL,
    patients.CONSENT_ENDS_SOON,
)
REFUSED = {
    patients.UNKNOWN: (404, "Recruitment not found", "Not Found"),
    patients.FORBIDDEN: (403, "Forbidden resource", "Forbidden"),
    patients.PROJECT_PAUSED: (400, "Project is not active", "Bad Request"),
}
ENDPOINTS = (
    ("POST", "/v1/projects/project-demo/recruitment/identified-patients/patient-in-progress/$updateData"),
    ("POST", "/v1/consents"),
    ("POST", "/v1/projects/project-demo/patients"),
    ("POST", "/v1/projects/project-demo/link"),
    ("GET", "/v1/usage/summary"),
    ("GET", "/FHIR/R4/metadata"),
)


def person(**other):
    known = {
        "firstName": "Sandbox",
        "lastName": "Synthetic",
        "contactPreference": "email",
        "languagePreference": "en",
        "email": "synthetic@example.com",
        "externalId": "ext-added",
    }
    return known | other


# --- tokens


def test_key_and_secret_give_a_token_that_looks_like_healthex_s(sandbox, call):
    answer = call("POST", "/v1/auth/token", json={"apiKey": sandbox.api_key, "apiSecret": sandbox.api_secret})
    token, expiration = answer.json()["token"], answer.json()["expiration"]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert answer.status_code == 201
    assert jwt.get_unverified_header(token)["alg"] == "ES256"
    assert claims["type"] == "API_EXTERNAL_RESEARCHER"
    assert claims["organizationId"] == "org-demo"
    assert isinstance(claims["permissions"], list)
    assert claims["exp"] == expiration == claims["iat"] + 24 * 3600
    assert abs(claims["iat"] - time.time()) < 5
    assert sandbox.calls("token") == 1
    authorization = {"Authorization": f"Bearer {token}"}
    assert call.update(patients.IN_PROGRESS, headers=authorization).status_code == 201


def test_a_wrong_secret_gives_no_token(sandbox, call):
    answer = call("POST", "/v1/auth/token", json={"apiKey": sandbox.api_key, "apiSecret": "wrong"})
    assert answer.status_code == 401
    assert answer.json() == {
        "message": "Invalid API key or secret",
        "statusCode": 401,
        "error": "Unauthorized",
    }


@pytest.mark.parametrize("kind", ["none", "no JWT", "expired", "another key's", "a patient's link", "basic"])
def test_every_endpoint_refuses_an_invalid_token(call, sandbox, kind):
    authorization = {
        "none": None,
        "no JWT": "Bearer organisation-token",
        "expired": f"Bearer {sandbox.token(expires_in=-60)}",
        "another key's": f"Bearer {Sandbox().token()}",
        "a patient's link": f"Bearer {sandbox.token(link=patients.IN_PROGRESS)}",
        "basic": f"Basic {sandbox.token()}",
    }[kind]
    for method, path in ENDPOINTS:
        answer = call(method, path, json={}, headers={"Authorization": authorization})
        assert answer.status_code == 401
        assert answer.json() == {"message": "Unauthorized", "statusCode": 401, "error": "Unauthorized"}
    assert sandbox.accepted(patients.IN_PROGRESS) == 0


# --- update


@pytest.mark.parametrize("patient_id", ACCEPTED)
def test_an_update_is_accepted(sandbox, call, patient_id):
    answer = call.update(patient_id)
    body = answer.json()
    assert answer.status_code == 201
    assert body["message"] == "IN_PROGRESS_NO_ACTION_NEEDED"
    assert "patientActionNeededReason" not in body
    assert body["skippedFacilitiesCount"] == (2 if patient_id == patients.PARTIAL else 0)
    assert set(body["counts"]) == {
        "skippedExistingFacilities",
        "changedExistingFacilities",
        "unchangedExistingFacilities",
        "retrievedNewFacilities",
        "skippedNewFacilities",
    }
    assert body["retrievalId"]
    assert (sandbox.asked(patient_id), sandbox.accepted(patient_id)) == (1, 1)


@pytest.mark.parametrize(("patient_id", "reason"), ACTION_NEEDED.items())
def test_patient_action_is_needed(sandbox, call, patient_id, reason):
    answer = call.update(patient_id)
    assert answer.status_code == 201
    assert answer.json() == {"message": "PATIENT_ACTION_NEEDED", "patientActionNeededReason": reason}
    assert (sandbox.asked(patient_id), sandbox.accepted(patient_id)) == (1, 0)


@pytest.mark.parametrize(("patient_id", "expected"), REFUSED.items())
def test_an_update_is_refused_in_the_envelope(sandbox, call, patient_id, expected):
    answer = call.update(patient_id)
    status, message, error = expected
    assert answer.status_code == status
    assert answer.json() == {"message": message, "statusCode": status, "error": error}
    assert (sandbox.asked(patient_id), sandbox.accepted(patient_id)) == (1, 0)


def test_every_scenario_is_in_one_of_these_tables():
    assert set(patients.SCENARIOS) == {*ACCEPTED, *ACTION_NEEDED, *REFUSED}


@pytest.mark.parametrize("reason", ["AUTHENTICATION_EXPIRED", "AUTHENTICATION_NEEDED_NEW_FACILITY"])
def test_skip_interactive_leaves_the_facility_out(call, reason):
    patient_id = next(each for each, of in ACTION_NEEDED.items() if of == reason)
    body = call.update(patient_id, {"skipInteractive": True}).json()
    assert body["message"] == "IN_PROGRESS_NO_ACTION_NEEDED"
    assert body["skippedFacilitiesCount"] == 1


def test_skip_interactive_does_not_replace_a_consent(call):
    body = call.update(patients.CONSENT_EXPIRED, {"skipInteractive": True}).json()
    assert body["patientActionNeededReason"] == "CONSENT_EXPIRED"


def test_the_dollar_must_be_literal(sandbox, call):
    path = ENDPOINTS[0][1]
    assert call("POST", path.replace("$", "%24"), json={}).status_code == 404
    assert sandbox.asked(patients.IN_PROGRESS) == 0
    assert call("POST", path, json={}).status_code == 201


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"json": []},
        {"data": b"{}"},
        {"data": b"{", "headers": {"Content-Type": "application/json"}},
        {"json": {"skipInteractive": "yes"}},
    ],
    ids=["no body", "a list", "no content type", "broken", "no boolean"],
)
def test_an_update_needs_a_json_object(sandbox, call, arguments):
    answer = call("POST", ENDPOINTS[0][1], **arguments)
    assert answer.status_code == 400
    assert answer.json()["message"]
    assert sandbox.accepted(patients.IN_PROGRESS) == 0


def test_an_unknown_project_is_not_found(call):
    assert call.update(patients.IN_PROGRESS, project_id="project-other").status_code == 404


def test_any_other_patient_is_not_found(sandbox, call):
    assert call.update("17d4513f-73e8").status_code == 404
    assert sandbox.asked("17d4513f-73e8") == 1


def test_an_id_that_was_quoted_arrives_as_one_segment(sandbox, call):
    assert call.update("a%20b").status_code == 404
    assert sandbox.asked("a b") == 1


def test_answers_carry_the_moment(call):
    date = parsedate_to_datetime(call.update(patients.IN_PROGRESS).headers["Date"])
    assert abs(date - datetime.now(timezone.utc)) < timedelta(seconds=5)


def test_an_unknown_path_is_answered_in_the_envelope(call):
    assert call("GET", "/v1/nothing").json()["statusCode"] == 404
    assert call("GET", "/v1/consents").json()["statusCode"] == 405


# --- the rest


def test_consents_list_the_patients_of_the_project(call):
    body = {"consentTypes": ["PATIENT_DIRECTED_DATA_EXCHANGE"], "studyId": "project-demo"}
    rows = {row["patientId"]: row["consents"][0] for row in call("POST", "/v1/consents", json=body).json()}
    now = datetime.now(timezone.utc)
    days = {each: (datetime.fromisoformat(row["expirationTimestamp"]) - now).days for each, row in rows.items()}
    assert set(rows) == {*ACCEPTED, *ACTION_NEEDED} - {patients.CONSENT_NOT_FOUND}
    assert set(rows[patients.IN_PROGRESS]) == {
        "consentType",
        "studyId",
        "hasPatientConsented",
        "source",
        "consentRecordId",
        "expirationTimestamp",
    }
    assert days[patients.CONSENT_EXPIRED] < 0 < days[patients.CONSENT_ENDS_SOON] <= 10 < days[patients.IN_PROGRESS]
    assert not rows[patients.CONSENT_REVOKED]["hasPatientConsented"]
    assert rows[patients.IN_PROGRESS]["hasPatientConsented"]


def test_consents_of_another_kind_or_project_are_none(call):
    assert call("POST", "/v1/consents", json={"consentTypes": [], "studyId": "project-demo"}).json() == []
    body = {"consentTypes": ["PATIENT_DIRECTED_DATA_EXCHANGE"], "studyId": "project-other"}
    assert call("POST", "/v1/consents", json=body).status_code == 404


def test_adding_patients_reports_failures_in_the_body(call):
    people = [
        person(),
        person(lastName=""),
        person(languagePreference="fr", externalId="ext-2"),
        person(contactPreference="phone", externalId="ext-3"),
        person(email="other@example.com"),
        "nobody",
    ]
    answer = call("POST", "/v1/projects/project-demo/patients", json={"patients": people})
    body = answer.json()
    assert answer.status_code == 201
    assert (body["totalProcessed"], body["successCount"], body["errorCount"], body["duplicatesCount"]) == (6, 1, 4, 1)
    assert [each["patientIndex"] for each in body["errors"]] == [1, 2, 3, 5]
    assert body["errors"][0]["error"] == "lastName is required"
    [added] = body["successfulPatients"]
    assert set(added) == {"patientIndex", "email", "referenceId"}
    assert added["patientIndex"] == 0


def test_adding_a_patient_again_is_safe(call):
    arguments = {"json": {"patients": [person()], "suppressNotifications": True}}
    call("POST", "/v1/projects/project-demo/patients", **arguments)
    body = call("POST", "/v1/projects/project-demo/patients", **arguments).json()
    assert (body["successCount"], body["duplicatesCount"], body["errorCount"]) == (0, 1, 0)


def test_an_added_patient_exists_after_following_the_link(sandbox, call, objects):
    call("POST", "/v1/projects/project-demo/patients", json={"patients": [person()]})
    state = call("GET", "/_sandbox/state").json()["patients"]
    [patient_id] = [each for each, row in state.items() if row["external_id"] == "ext-added"]
    assert call.update(patient_id).status_code == 404
    link = call("POST", "/v1/projects/project-demo/link", json={"externalId": "ext-added"})
    assert call("POST", link.text.removeprefix(sandbox.api_url)).status_code == 200
    sandbox.wait_until_delivered()
    assert list(objects(patient_id)) == ["bundle.json"]
    assert call.update(patient_id).status_code == 201


def test_a_link_is_a_bare_signed_url(sandbox, call):
    answer = call("POST", "/v1/projects/project-demo/link", json={"externalId": "ext-consent-expired"})
    assert answer.status_code == 201
    assert not answer.headers["Content-Type"].startswith("application/json")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/link/[\w.-]+", answer.text)
    path = answer.text.removeprefix(sandbox.api_url)
    assert call("GET", path, headers={"Authorization": None}).status_code == 200
    assert call("GET", path + "x").status_code == 404


def test_a_link_needs_a_known_external_id(call):
    answer = call("POST", "/v1/projects/project-demo/link", json={"externalId": "ext-nobody"})
    assert answer.status_code == 400
    assert answer.json()["message"] == "Patient not found for provided externalId"
    assert call("POST", "/v1/projects/project-demo/link", json={}).status_code == 400


def test_usage_counts_retrievals_for_an_administrator(sandbox, call):
    call.update(patients.IN_PROGRESS)
    call.update(patients.CONSENT_EXPIRED)
    assert call("GET", "/v1/usage/summary").json()["retrievals"] == 1
    researcher = {"Authorization": f"Bearer {sandbox.token(permissions=['DATA_REQUESTOR'])}"}
    assert call("GET", "/v1/usage/summary", headers=researcher).status_code == 403


def test_the_metadata_is_a_capability_statement(call):
    answer = call("GET", "/FHIR/R4/metadata")
    assert answer.status_code == 200
    assert answer.json()["resourceType"] == "CapabilityStatement"
    assert answer.json()["fhirVersion"] == "4.0.1"
