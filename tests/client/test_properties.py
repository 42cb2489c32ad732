"""Properties that hold for any answer, any text and any id."""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import datetime, timedelta, timezone
from urllib.parse import quote, unquote

import pytest
from helpers.loopback import PATIENT, PROJECT, STARTED, Service, make_jwt, raw
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_healthex.client import ClientSettings, HealthExClient, PatientUpdate, StoredToken
from airflow_provider_healthex.client.calls import identifier
from airflow_provider_healthex.client.headers import http_date, request_moment, retry_after
from airflow_provider_healthex.client.redaction import LONGEST_DETAIL, clean, detail
from airflow_provider_healthex.exceptions import (
    HealthExApiError,
    HealthExConfigurationError,
    HealthExUpdateAmbiguousError,
)

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=timezone.utc)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
answers = st.fixed_dictionaries(
    {"message": st.sampled_from(["IN_PROGRESS_NO_ACTION_NEEDED", "PATIENT_ACTION_NEEDED"])},
    optional={
        "patientActionNeededReason": json_values,
        "retrievalId": json_values,
        "skippedFacilitiesCount": json_values,
        "counts": json_values,
        "code": json_values,
    },
)


def read(answer: object) -> PatientUpdate | None:
    return PatientUpdate.from_answer(
        answer, project_id=PROJECT, patient_id=PATIENT, organization_id=None, requested_at=NOW
    )


@given(answers)
def test_an_accepted_update_is_read_whatever_its_optional_fields_are(answer):
    update = read(answer)
    assert update is not None
    stored = json.loads(json.dumps(update.to_dict(), allow_nan=False))
    assert stored["message"] == answer["message"]
    for text in (stored["retrieval_id"], stored["patient_action_needed_reason"]):
        assert text is None or re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", text)


@given(json_values)
def test_an_answer_without_a_documented_message_is_never_taken_for_accepted(answer):
    update = read(answer)
    assert update is None or answer["message"] == update.message


@given(st.text(), st.text(alphabet=st.characters(categories=["L", "N"]), min_size=8, max_size=40), st.text())
def test_a_secret_is_never_repeated(before, secret, after):
    shown = clean(f"{before} {secret} {after}", [secret])
    assert secret.casefold() not in shown.casefold()
    assert len(shown) <= LONGEST_DETAIL


@given(st.binary(max_size=400))
@example(b'{"message": "\x00"}')
def test_an_errors_body_is_shown_on_one_line_without_control_characters(body):
    shown = detail(body)
    assert len(shown) <= LONGEST_DETAIL
    assert not [letter for letter in shown if unicodedata.category(letter).startswith("C")]


@given(st.text())
def test_any_date_and_retry_after_header_is_read_or_ignored(text):
    moment = http_date(text)
    assert moment is None or moment.tzinfo is not None
    wait = retry_after(text, NOW)
    assert wait is None or wait >= 0


@given(
    st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1), timezones=st.just(timezone.utc)),
    st.floats(min_value=0, max_value=300),
)
def test_requested_at_is_within_a_day_of_this_machines_clock(date, seconds):
    moment = request_moment(date, NOW, seconds)
    assert moment.microsecond == 0
    assert abs(moment - NOW) <= timedelta(days=1, seconds=1)


@given(st.text(min_size=1))
@example("17d4513f-73e8")
@example("..")
@example("a/b")
@example("\ufeff17d4")
def test_an_id_that_is_accepted_stays_one_segment_of_the_path(text):
    try:
        accepted = identifier("patient_id", text)
    except HealthExConfigurationError:
        return
    segment = quote(accepted, safe="")
    assert unquote(segment) == text
    assert "/" not in segment
    assert segment not in (".", "..")
    assert text.strip() == text


@pytest.fixture(scope="module")
def service():
    running = Service()
    yield running
    running.close()


#: Pieces of an answer, right and wrong, in any order.
pieces = st.lists(
    st.sampled_from(
        [
            b"HTTP/1.1 201 Created\r\n",
            b"HTTP/1.1 102 Processing\r\n\r\n",
            b"HTTP/1.1 200\r\n",
            b"HTTP/9 201 x\r\n",
            b"Content-Length: 5\r\n",
            b"Content-Length: 7\r\n",
            b"Content-Length: -1\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: gzip\r\n",
            b"Date: never\r\n",
            b" folded\r\n",
            b"no colon\r\n",
            b"\r\n",
            b"5\r\nhello\r\n",
            b"zz\r\n",
            b"0\r\n\r\n",
            json.dumps(STARTED).encode(),
            b"\x00\xff",
        ]
    ),
    max_size=8,
).map(b"".join)


@settings(max_examples=150)
@given(pieces)
def test_whatever_answers_an_update_it_is_accepted_ambiguous_or_an_error_of_the_service(service, answer):
    service.answers(raw(answer))
    settings_ = ClientSettings(service.url, StoredToken(make_jwt()), connect_timeout=5, read_timeout=5)
    sent = len(service.received)
    with HealthExClient(settings_) as client:
        assert outcome(client) in ("accepted", "ambiguous", "an error of the service")
    assert len(service.received) == sent + 1, "a billed request was repeated"


def outcome(client: HealthExClient) -> str:
    try:
        return "accepted" if client.update_patient(PROJECT, PATIENT).message == STARTED["message"] else "something else"
    except HealthExUpdateAmbiguousError as error:
        return "ambiguous" if error.requested_at else "ambiguous without requested_at"
    except HealthExApiError as error:
        return "a 2xx as an error" if 200 <= error.status_code < 300 else "an error of the service"
