from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import jwt
import pytest
from helpers.loopback import PATIENT, PROJECT, SECRET, STARTED, Reply, Service, closes, make_jwt, raw, says, status

from airflow_provider_healthex.client import ApiKey, HealthExClient, StoredToken
from airflow_provider_healthex.client.token import check, claims, organization, requested_token
from airflow_provider_healthex.exceptions import (
    HealthExApiError,
    HealthExAuthenticationError,
    HealthExConnectionError,
    HealthExRateLimitError,
    HealthExServerError,
    HealthExTokenError,
)

Connect = Callable[..., HealthExClient]
UTC = timezone.utc
NOW = datetime(2026, 11, 22, 17, 40, 5, tzinfo=UTC)


def token_until(expiry: float, **more: Any) -> str:
    return jwt.encode({"exp": int(expiry), **more}, "x" * 32, algorithm="HS256")


@pytest.mark.parametrize("token", ["opaque", "a.b.c", "eyJ.eyJ.x", "a.b.c.d.e", "", "é"])
def test_a_token_that_is_no_jwt_has_no_claims(token: str) -> None:
    assert claims(token) == {}
    assert organization(token) is None
    check(token, NOW)


@pytest.mark.parametrize(("late", "rejected"), [(-1, False), (59, False), (61, True)])
def test_expiry_is_checked_with_leeway(late: int, rejected: bool) -> None:
    token = token_until(NOW.timestamp() - late)
    if not rejected:
        check(token, NOW)
        return
    with pytest.raises(HealthExTokenError, match=r"expired at 2026-11-22T17:39:04\+00:00"):
        check(token, NOW)


@pytest.mark.parametrize(("early", "rejected"), [(59, False), (61, True)])
def test_the_beginning_is_checked_with_leeway(early: int, rejected: bool) -> None:
    token = token_until(NOW.timestamp() + 3600, nbf=int(NOW.timestamp() + early))
    if not rejected:
        check(token, NOW)
        return
    with pytest.raises(HealthExTokenError, match=r"not valid before 2026-11-22T17:41:06\+00:00"):
        check(token, NOW)


@pytest.mark.parametrize("value", ["soon", None, True, [], 10**30, -1])
def test_a_claim_that_is_no_moment_is_ignored(value: Any) -> None:
    check(jwt.encode({"exp": value, "nbf": value}, "x" * 32, algorithm="HS256"), NOW)


def test_the_organization_is_made_harmless() -> None:
    assert organization(make_jwt()) == "org-7"
    assert organization(make_jwt(organizationId="{{ 7 }}")) == "UNRECOGNIZED"
    assert organization(make_jwt(organizationId=None)) is None


def test_an_expired_stored_token_is_rejected_before_anything_is_sent(service: Service, connect: Connect) -> None:
    client = connect(credentials=StoredToken(make_jwt(-3600)))
    for call in (client.check_token, lambda: client.update_patient(PROJECT, PATIENT), client.capability_statement):
        with pytest.raises(HealthExTokenError, match="expired at"):
            call()
    assert service.connections == 0


def test_a_stored_token_is_sent_as_it_is(service: Service, connect: Connect) -> None:
    client = connect(credentials=StoredToken("opaque-token"))
    client.check_token()
    assert client.update_patient(PROJECT, PATIENT).organization_id is None
    assert [each.headers["Authorization"] for each in service.received] == ["Bearer opaque-token"]


def test_a_rejected_stored_token_is_not_tried_again(service: Service, client: HealthExClient) -> None:
    service.answers(status(401, "Unauthorized"))
    with pytest.raises(HealthExAuthenticationError):
        client.update_patient(PROJECT, PATIENT)
    assert len(service.received) == 1


@pytest.mark.parametrize(
    ("answer", "expires"),
    [
        ({"token": "t", "expiration": NOW.timestamp()}, NOW),
        ({"token": "t", "expiration": "2026-11-22T17:40:05Z"}, NOW),
        ({"token": token_until(NOW.timestamp())}, NOW),
        ({"token": token_until(NOW.timestamp()), "expiration": None}, NOW),
        ({"token": token_until(0), "expiration": NOW.timestamp()}, NOW),
        ({"token": "t"}, NOW + timedelta(hours=24)),
    ],
)
def test_a_requested_token_expires_when_the_answer_or_its_claim_says(answer: Any, expires: datetime) -> None:
    got = requested_token(answer, NOW)
    assert got is not None
    assert got.expires_at == expires
    assert "token" not in repr(got)


@pytest.mark.parametrize("answer", [None, [], {}, {"token": ""}, {"token": 7}, {"token": "a b"}, {"token": "a\nb"}])
def test_an_answer_without_a_usable_token_is_none(answer: Any) -> None:
    assert requested_token(answer, NOW) is None


@pytest.mark.parametrize("code", [200, 201])
def test_a_token_is_requested_once_for_all_clients_of_the_process(
    service: Service, connect: Connect, api_key: ApiKey, code: int
) -> None:
    token = make_jwt()
    service.answers_token_requests(says({"token": token, "expiration": time.time() + 3600}, code))
    first, second = connect(credentials=api_key), connect(credentials=ApiKey("key-1", SECRET))
    first.update_patient(PROJECT, PATIENT)
    second.check_token()
    second.update_patient(PROJECT, PATIENT)
    assert second.organization_id == "org-7"
    assert [each.json for each in service.token_requests] == [{"apiKey": "key-1", "apiSecret": SECRET}]
    assert service.token_requests[0].headers["Authorization"] is None
    assert {each.headers["Authorization"] for each in service.received} == {f"Bearer {token}"}


def test_another_secret_requests_another_token(service: Service, connect: Connect, api_key: ApiKey) -> None:
    service.answers_token_requests(says({"token": make_jwt()}))
    connect(credentials=api_key).check_token()
    connect(credentials=ApiKey("key-1", "another")).check_token()
    assert len(service.token_requests) == 2


def test_many_threads_request_one_token(service: Service, connect: Connect, api_key: ApiKey) -> None:
    service.answers_token_requests(says({"token": make_jwt()}))
    client = connect(credentials=api_key)
    with ThreadPoolExecutor(16) as threads:
        updates = list(threads.map(lambda number: client.update_patient(PROJECT, f"p-{number}"), range(32)))
    assert len(service.token_requests) == 1
    assert sorted(update.patient_id for update in updates) == sorted(f"p-{number}" for number in range(32))


def test_threads_that_waited_for_a_token_share_its_rejection(
    service: Service, connect: Connect, api_key: ApiKey
) -> None:
    together = threading.Barrier(8)

    def reject(handler: Any) -> None:
        time.sleep(0.2)  # until all wait for it
        handler.wfile.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

    service.answers_token_requests(Reply(act=reject))
    client = connect(credentials=api_key, read_timeout=2)

    def check_token(_: int) -> None:
        together.wait()
        with pytest.raises(HealthExTokenError):
            client.check_token()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(check_token, range(8)))
    assert len(service.token_requests) == 1
    assert service.received == []


def test_a_token_about_to_expire_is_replaced(service: Service, connect: Connect, api_key: ApiKey) -> None:
    service.answers_token_requests(says({"token": make_jwt(119)}), says({"token": make_jwt(130)}))
    client = connect(credentials=api_key)
    for _ in range(3):
        client.update_patient(PROJECT, PATIENT)
    assert len(service.token_requests) == 2


def test_a_rejected_requested_token_is_replaced_once(service: Service, connect: Connect, api_key: ApiKey) -> None:
    old, new = make_jwt(jti="old"), make_jwt(jti="new")
    service.answers_token_requests(says({"token": old}), says({"token": new}))
    service.answers(status(401), says(STARTED))
    client = connect(credentials=api_key)
    client.update_patient(PROJECT, PATIENT)
    assert [each.headers["Authorization"] for each in service.received] == [f"Bearer {old}", f"Bearer {new}"]
    assert len(service.token_requests) == 2


def test_a_requested_token_is_not_replaced_twice(service: Service, connect: Connect, api_key: ApiKey) -> None:
    service.answers_token_requests(says({"token": make_jwt()}))
    service.answers(status(401))
    with pytest.raises(HealthExAuthenticationError, match="API key"):
        connect(credentials=api_key).update_patient(PROJECT, PATIENT)
    assert (len(service.token_requests), len(service.received)) == (2, 2)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_a_rejected_token_request_is_a_token_error(
    service: Service, connect: Connect, api_key: ApiKey, code: int
) -> None:
    service.answers_token_requests(says({"message": f"{SECRET} is wrong"}, code))
    with pytest.raises(HealthExTokenError, match=rf"^Token request [a-z ]+ \(HTTP {code}\)") as error:
        connect(credentials=api_key).check_token()
    assert SECRET not in str(error.value)
    assert len(service.token_requests) == 1


@pytest.mark.parametrize("reply", [says({}), says([]), status(201, "hello"), says({"token": "a b"})])
def test_an_answer_without_a_token_is_a_token_error(
    service: Service, connect: Connect, api_key: ApiKey, reply: Reply
) -> None:
    service.answers_token_requests(reply)
    with pytest.raises(HealthExTokenError, match="has no token"):
        connect(credentials=api_key).check_token()
    assert len(service.token_requests) == 1


@pytest.mark.parametrize(
    ("reply", "error", "asked"),
    [
        (status(429), HealthExRateLimitError, 5),
        (status(500), HealthExServerError, 5),
        (status(502), HealthExServerError, 5),
        (status(503), HealthExServerError, 5),
        (status(302, Location="https://elsewhere.example/x"), HealthExApiError, 1),
        (closes(), HealthExConnectionError, 1),
        (raw(b"HTTP/1.1 201 Created\r\nContent-Length: 99\r\n\r\n{"), HealthExConnectionError, 1),
    ],
)
def test_a_token_request_is_retried_like_a_get(
    service: Service, connect: Connect, api_key: ApiKey, reply: Reply, error: type[Exception], asked: int
) -> None:
    service.answers_token_requests(reply)
    with pytest.raises(error):
        connect(credentials=api_key).update_patient(PROJECT, PATIENT)
    assert (len(service.token_requests), len(service.received)) == (asked, 0)


def test_a_token_request_is_retried_after_silence(service: Service, connect: Connect, api_key: ApiKey) -> None:
    service.answers_token_requests(service.stays_silent(), says({"token": make_jwt()}))
    connect(credentials=api_key, read_timeout=0.1).update_patient(PROJECT, PATIENT)
    assert (len(service.token_requests), len(service.received)) == (2, 1)
