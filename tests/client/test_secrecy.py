"""No token, secret, link or patient's data in anything a person or a log may get to see."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from helpers.loopback import PATIENT, PROJECT, SECRET, Reply, Service, make_jwt, raw, says, status

from airflow_provider_healthex.client import ApiKey, HealthExClient, StoredToken
from airflow_provider_healthex.exceptions import HealthExError

Connect = Callable[..., HealthExClient]
STORED, OPAQUE, REQUESTED = make_jwt(jti="stored"), "opaque-0123456789", make_jwt(jti="requested")
LINK, NAME, EMAIL = "https://app.healthex.io/l/abc?sig=s1gn3d", "Annabel", "ann@example.com"

#: Each secret and the parts of it that would be enough; an opaque one is known only to the client that has it.
HIDDEN = (STORED, REQUESTED, STORED.split(".")[2], REQUESTED.split(".")[2], "s1gn3d", EMAIL)
ECHO = f"{STORED} token={{own}} Bearer {REQUESTED} {LINK} {EMAIL}"
RECORD = f'{{{{"patient": {{{{"firstName": "{NAME}"}}}}, "token": "{{own}} {REQUESTED}"}}}}'

CALLS: list[Callable[[HealthExClient], Any]] = [
    lambda client: client.update_patient(PROJECT, PATIENT),
    lambda client: client.add_patients(PROJECT, [{"firstName": NAME, "email": EMAIL}]),
    lambda client: client.create_patient_link(PROJECT, NAME),
    lambda client: client.check_token(),
    lambda client: client.capability_statement(),
]
REPLIES: list[Callable[[str, str], Reply]] = [
    lambda echo, record: says({"message": echo}, 400),
    lambda echo, record: says({"message": [echo]}, 401),
    lambda echo, record: says({"message": echo}, 429),
    lambda echo, record: status(500, f"<html><body>{echo}</body></html>"),
    lambda echo, record: status(400, record),
    lambda echo, record: status(201, record),
    lambda echo, record: status(302, Location=LINK),
    lambda echo, record: raw(f"HTTP/1.1 201 {echo}\r\nContent-Length: 999\r\n\r\n{record}".encode()),
    lambda echo, record: status(307, Location=f"/l/{NAME}?for={NAME}"),
    lambda echo, record: status(307, Location=f"https://{NAME}:{NAME}@elsewhere.example.org/{echo}"),
    lambda echo, record: raw(f"HTTP/1.1 201 Created\r\nContent-Length: 1\r\nContent-Length: {echo}\r\n\r\n".encode()),
    lambda echo, record: raw(f"HTTP/1.1 201 Created\r\n{echo} {record}\r\n\r\n{record}".encode()),
    lambda echo, record: raw(f"HTTP/1.1 103 {NAME}\r\nX: {echo}\r\n\r\nHTTP/1.1 {NAME}".encode()),
    lambda echo, record: raw(f"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n{NAME}\r\n".encode()),
    lambda echo, record: raw(f"{echo}\r\n\r\n".encode()),
    lambda echo, record: raw(f"HTTP/1.1 {echo}\r\n\r\n".encode()),
]


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize(
    ("credentials", "own", "gets_token"),
    [
        (StoredToken(STORED), STORED, True),
        (StoredToken(OPAQUE), OPAQUE, True),
        (ApiKey("key-1", SECRET), SECRET, True),
        (ApiKey("key-1", SECRET), SECRET, False),
    ],
)
def test_nothing_secret_is_shown(
    service: Service,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    reply: Callable[[str, str], Reply],
    credentials: Any,
    own: str,
    gets_token: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = reply(ECHO.format(own=own), RECORD.format(own=own))
    service.answers(answer)
    service.answers_token_requests(says({"token": REQUESTED}) if gets_token else answer)
    client = connect(credentials=credentials)
    shown = [repr(client), str(client), repr(client._settings)]
    for call in CALLS:
        try:
            result = call(client)
        except HealthExError as error:
            shown += [str(error), repr(error), repr(vars(error)), "".join(traceback.format_exception(error))]
        else:  # a document that was asked for is the caller's
            shown += [] if isinstance(result, dict) else [repr(result)]
    shown += [f"{record.getMessage()} {record.args!r} {record.exc_text}" for record in caplog.records]
    for hidden in (*HIDDEN, own, NAME):
        assert hidden not in "\n".join(shown)
