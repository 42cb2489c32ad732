from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from helpers.loopback import PATIENT, PROJECT, STARTED, Reply, Service, says, status

from airflow_provider_healthex.client import ApiKey, HealthExClient, StoredToken
from airflow_provider_healthex.exceptions import (
    HealthExApiError,
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExNotFoundError,
    HealthExPermissionError,
    HealthExRequestError,
    HealthExUpdateAmbiguousError,
)

Connect = Callable[..., HealthExClient]
UTC = timezone.utc


# Updates


@pytest.mark.parametrize(
    ("flag", "body"), [(None, {}), (True, {"skipInteractive": True}), (False, {"skipInteractive": False})]
)
def test_skip_interactive_is_sent_where_it_is_given(
    service: Service, client: HealthExClient, flag: bool | None, body: Any
) -> None:
    client.update_patient(PROJECT, PATIENT, skip_interactive=flag)
    assert service.received[0].json == body


@pytest.mark.parametrize("value", ["true", 1])
def test_a_flag_must_be_a_boolean(service: Service, client: HealthExClient, value: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match="skipInteractive"):
        client.update_patient(PROJECT, PATIENT, skip_interactive=value)
    assert service.connections == 0


@pytest.mark.parametrize("code", [200, 201, 202, 299])
def test_any_2xx_is_a_success(service: Service, client: HealthExClient, code: int) -> None:
    service.answers(says({"message": "PATIENT_ACTION_NEEDED", "patientActionNeededReason": "CONSENT_EXPIRED"}, code))
    update = client.update_patient(PROJECT, PATIENT)
    assert (update.project_id, update.patient_id, update.organization_id) == (PROJECT, PATIENT, "org-7")
    assert update.needs_patient
    assert update.patient_action_needed_reason == "CONSENT_EXPIRED"


@pytest.mark.parametrize(
    ("answer", "said"),
    [({"message": "QUEUED"}, "QUEUED"), ({"message": "{{ 7 }}"}, "UNRECOGNIZED"), ({}, "nothing readable")],
)
def test_an_undocumented_message_is_named(service: Service, client: HealthExClient, answer: Any, said: str) -> None:
    service.answers(says(answer))
    with pytest.raises(HealthExUpdateAmbiguousError, match=f"documented messages: {said}"):
        client.update_patient(PROJECT, PATIENT)


def answers_at(service: Service, clock: datetime, reply: Reply | None = None) -> None:
    reply = reply or says(STARTED)
    reply.date = format_datetime(clock, usegmt=True)
    service.answers(reply)


@pytest.mark.parametrize("ahead", [timedelta(hours=23), timedelta(minutes=-2), timedelta(hours=-23)])
def test_requested_at_follows_the_services_clock_and_a_difference_is_logged_once(
    service: Service, client: HealthExClient, caplog: pytest.LogCaptureFixture, ahead: timedelta
) -> None:
    clock = datetime.now(UTC).replace(microsecond=0) + ahead
    answers_at(service, clock)
    for _ in range(2):
        assert client.update_patient(PROJECT, PATIENT).requested_at == clock - timedelta(seconds=1)
    assert caplog.text.count("HealthEx's clock is") == 1


def test_a_difference_of_a_minute_is_not_logged(
    service: Service, client: HealthExClient, caplog: pytest.LogCaptureFixture
) -> None:
    answers_at(service, datetime.now(UTC) + timedelta(seconds=50))
    client.update_patient(PROJECT, PATIENT)
    assert caplog.text == ""


@pytest.mark.parametrize("clock", [timedelta(days=1, minutes=1), timedelta(days=-2), datetime(1970, 1, 1, tzinfo=UTC)])
@pytest.mark.parametrize("code", [201, 500])
def test_a_date_a_day_or_more_away_is_ignored_with_a_warning(
    service: Service,
    client: HealthExClient,
    caplog: pytest.LogCaptureFixture,
    clock: timedelta | datetime,
    code: int,
) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    reply = says(STARTED, code)
    answers_at(service, before + clock if isinstance(clock, timedelta) else clock, reply)
    requested_at: Any
    try:
        requested_at = client.update_patient(PROJECT, PATIENT).requested_at
    except HealthExUpdateAmbiguousError as error:
        requested_at = error.requested_at
    assert before <= requested_at <= datetime.now(UTC)
    assert "s from this machine's clock, and is ignored" in caplog.text


@pytest.mark.parametrize("date_header", [None, "yesterday"])
def test_without_a_date_requested_at_is_the_workers_clock(
    service: Service, client: HealthExClient, date_header: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    reply = says(STARTED)
    reply.date = date_header
    service.answers(reply)
    before = datetime.now(UTC)
    requested_at = client.update_patient(PROJECT, PATIENT).requested_at
    assert abs(requested_at - before) < timedelta(seconds=5)
    assert requested_at.microsecond == 0
    assert caplog.text == ""


def test_the_organization_of_the_settings_comes_first(service: Service, connect: Connect) -> None:
    client = connect(org_id="org-of-settings", credentials=StoredToken("opaque"))
    assert client.organization_id == "org-of-settings"
    assert client.update_patient(PROJECT, PATIENT).organization_id == "org-of-settings"


def test_a_403_names_the_user_that_is_needed(service: Service, client: HealthExClient) -> None:
    service.answers(says({"message": "Forbidden resource"}, 403))
    with pytest.raises(HealthExPermissionError, match=r"data-requestor \(research organisation\)") as error:
        client.update_patient(PROJECT, PATIENT)
    assert error.value.detail == "Forbidden resource"
    assert "Forbidden resource" in str(error.value)


def test_a_404_of_an_update_gives_the_guides_hint(service: Service, client: HealthExClient) -> None:
    service.answers(says({"message": "Recruitment not found"}, 404))
    with pytest.raises(HealthExNotFoundError, match=r"Recruitment not found.*never added.*Add/Update Patient") as error:
        client.update_patient(PROJECT, PATIENT)
    assert str(error.value).startswith(f"Patient {PATIENT!r} not found (HTTP 404): Recruitment not found.")
    for part in (PROJECT, PATIENT, "$updateData", "{patientId}"):
        assert part in str(error.value)


def test_a_403_of_the_usage_names_its_role(service: Service, client: HealthExClient) -> None:
    service.answers(status(403))
    with pytest.raises(HealthExPermissionError, match="ORG_ADMIN"):
        client.usage_summary("2026-01-01", "2026-02-01")


# Adding patients

ANN = {
    "firstName": "Annabel",
    "lastName": "Quist",
    "dateOfBirth": "1961-02-03",
    "email": "ann@example.com",
    "phone": 15551234567,
    "contactPreference": "email",
    "languagePreference": "en",
    "address": {"city": "Springfield"},
}


def test_patients_are_sent_as_they_are(service: Service, client: HealthExClient) -> None:
    service.answers(says({"successCount": 1, "successfulPatients": [{"patientIndex": 0, "referenceId": "ref-1"}]}))
    result = client.add_patients(PROJECT, [ANN], suppress_notifications=True)
    assert service.received[0].target == f"/v1/projects/{PROJECT}/patients"
    assert service.received[0].json == {"patients": [ANN], "suppressNotifications": True}
    assert result.successful_patients == ((0, "ref-1"),)


def test_errors_do_not_repeat_what_was_sent_of_a_patient(service: Service, client: HealthExClient) -> None:
    words = "Annabel QUIST (1961-02-03, 15551234567, Springfield) has no valid email in en"
    service.answers(says({"errors": [{"patientIndex": 0, "error": words}]}), says({"message": words}, 400))
    clean = "*** *** (***, ***, ***) has no valid email in en"
    assert client.add_patients(PROJECT, [ANN]).errors == ((0, clean),)
    with pytest.raises(HealthExRequestError) as error:
        client.add_patients(PROJECT, [ANN])
    assert error.value.detail == clean


@pytest.mark.parametrize("patients", [[], (), None, "Ann", {"firstName": "Ann"}, ["Ann"], [None]])
def test_anything_but_a_list_of_patients_is_rejected(service: Service, client: HealthExClient, patients: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match="mapping") as error:
        client.add_patients(PROJECT, patients)
    assert "Ann" not in str(error.value)
    assert service.connections == 0


def test_thousands_of_rejected_patients_are_read_fast(service: Service, client: HealthExClient) -> None:
    people = [{"firstName": f"First{number}", "lastName": f"Last-{number}"} for number in range(2000)]
    errors = [{"patientIndex": number, "error": f"First{number} is wrong"} for number in range(2000)]
    service.answers(says({"errors": errors}))
    result = client.add_patients(PROJECT, people)
    assert {text for _, text in result.errors} == {"*** is wrong"}


# Consents


def test_consented_patients_are_requested_by_project(service: Service, client: HealthExClient) -> None:
    consent = {"hasPatientConsented": True, "studyId": PROJECT, "expirationTimestamp": "2027-01-01T00:00:00Z"}
    service.answers(says([{"patientId": PATIENT, "healthcareOrganizationId": "h", "consents": [consent]}]))
    (patient,) = client.list_consented_patients(PROJECT)
    assert service.received[0].target == "/v1/consents"
    assert service.received[0].json == {"consentTypes": ["PATIENT_DIRECTED_DATA_EXCHANGE"], "studyId": PROJECT}
    assert (patient.patient_id, patient.expires_at) == (PATIENT, datetime(2027, 1, 1, tzinfo=UTC))


def test_ids_that_cannot_be_used_are_counted_and_not_logged(
    service: Service, client: HealthExClient, caplog: pytest.LogCaptureFixture
) -> None:
    consents = [{"hasPatientConsented": True}]
    service.answers(says([{"patientId": "{{ bad }}", "consents": consents}, {"patientId": "ok", "consents": consents}]))
    assert [patient.patient_id for patient in client.list_consented_patients(PROJECT)] == ["ok"]
    assert "1 of the consented patients left out" in caplog.text
    assert "bad" not in caplog.text


# Links

LINK = "https://app.healthex.io/l/abc?sig=s1gn3d&x=%7B"


@pytest.mark.parametrize("body", [LINK, f" {LINK}\n", f'"{LINK}"'])
def test_a_link_is_text_or_a_json_string(service: Service, connect: Connect, body: str) -> None:
    secrets: list[str] = []
    service.answers(status(201, body))
    assert connect(on_secret=secrets.append).create_patient_link(PROJECT, "external 1") == LINK
    assert service.received[0].target == f"/v1/projects/{PROJECT}/link"
    assert service.received[0].json == {"externalId": "external 1"}
    assert LINK in secrets


@pytest.mark.parametrize(
    "body",
    [
        "",
        f'{{"link": "{LINK}"}}',
        f"<a href={LINK}>",
        f"see {LINK}",
        f"{LINK}\n{LINK}",
        "javascript:alert(1)",
        '"https://app.healthex.io/s1gn3d\\n"',
        '"https://',
        "https://[s1gn3d",
        "https:///s1gn3d",
        "https://app.healthex.io/s1gn3d\x00",
    ],
)
def test_anything_else_is_no_link_and_is_not_repeated(service: Service, client: HealthExClient, body: str) -> None:
    service.answers(status(201, body))
    with pytest.raises(HealthExApiError, match="is no link") as error:
        client.create_patient_link(PROJECT, "external-1")
    assert "s1gn3d" not in str(error.value)


def test_an_external_id_is_not_repeated(service: Service, client: HealthExClient) -> None:
    service.answers(says({"message": "Patient not found for provided externalId MRN-77"}, 400))
    with pytest.raises(HealthExRequestError, match=r"externalId \*\*\*"):
        client.create_patient_link(PROJECT, "MRN-77")


# Usage, metadata


@pytest.mark.parametrize(
    ("start", "end", "query"),
    [
        (date(2026, 1, 1), "2026-02-01", "startDate=2026-01-01&endDate=2026-02-01"),
        (
            datetime(2026, 1, 1, tzinfo=UTC),
            "2026-02-01T00:00:00Z",
            "startDate=2026-01-01T00%3A00%3A00%2B00%3A00&endDate=2026-02-01T00%3A00%3A00Z",
        ),
    ],
)
def test_usage_is_requested_for_a_time(
    service: Service, client: HealthExClient, start: Any, end: Any, query: str
) -> None:
    service.answers(says({"retrievals": 3}, 200))
    assert client.usage_summary(start, end) == {"retrievals": 3}
    assert service.received[0].target == f"/v1/usage/summary?{query}"
    assert (service.received[0].method, service.received[0].body) == ("GET", b"")


@pytest.mark.parametrize("value", ["last week", None, 7])
def test_a_time_must_be_one(service: Service, client: HealthExClient, value: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match="end must be"):
        client.usage_summary("2026-01-01", value)
    assert service.connections == 0


def test_the_capability_statement_is_read(service: Service, client: HealthExClient) -> None:
    service.answers(says({"resourceType": "CapabilityStatement"}, 200))
    assert client.capability_statement() == {"resourceType": "CapabilityStatement"}
    assert service.received[0].target == "/FHIR/R4/metadata"


# The client


def test_a_client_is_a_context_manager(connect: Connect) -> None:
    with connect() as client:
        assert client.update_patient(PROJECT, PATIENT).retrieval_id == "r-1"


def test_on_secret_is_given_each_token_once(service: Service, connect: Connect, api_key: ApiKey) -> None:
    secrets: list[str] = []
    stored = connect(on_secret=secrets.append, credentials=StoredToken("stored-token"))
    stored.update_patient(PROJECT, PATIENT)
    assert secrets == ["stored-token"]
    service.answers_token_requests(says({"token": "requested-1"}), says({"token": "requested-2"}))
    service.answers(status(401), says(STARTED))
    connect(on_secret=secrets.append, credentials=api_key).update_patient(PROJECT, PATIENT)
    assert secrets == ["stored-token", "requested-1", "requested-2"]
    connect(on_secret=secrets.append, credentials=api_key).check_token()
    assert secrets == ["stored-token", "requested-1", "requested-2", "requested-2"]


def test_a_requested_token_is_announced_before_it_is_used(service: Service, connect: Connect, api_key: ApiKey) -> None:
    known_before: list[bool] = []
    secrets: list[str] = []

    def look(handler: Any) -> None:
        known_before.append("requested-1" in secrets)

    service.answers_token_requests(says({"token": "requested-1"}))
    service.answers(Reply(act=look))
    with pytest.raises(HealthExConnectionError, match="no readable answer"):
        connect(on_secret=secrets.append, credentials=api_key).list_consented_patients(PROJECT)
    assert known_before == [True]
