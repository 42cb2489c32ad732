"""Every row of the rules: how often a call is tried, and which error it ends with."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.loopback import PATIENT, PROJECT, STARTED, Reply, Service, closed_port, closes, raw, resets, says, status
from tenacity import wait_fixed

from airflow_provider_healthex.client import ApiKey, HealthExClient, retries
from airflow_provider_healthex.client.rate_limit import RateLimit
from airflow_provider_healthex.client.retries import FailedTry, retried
from airflow_provider_healthex.exceptions import (
    HealthExApiError,
    HealthExAuthenticationError,
    HealthExConnectionError,
    HealthExError,
    HealthExNotFoundError,
    HealthExPermissionError,
    HealthExRateLimitError,
    HealthExRequestError,
    HealthExServerError,
    HealthExUpdateAmbiguousError,
)

Connect = Callable[..., HealthExClient]
UTC = timezone.utc


def update(client: HealthExClient) -> Any:
    return client.update_patient(PROJECT, PATIENT)


def add(client: HealthExClient) -> Any:
    return client.add_patients(PROJECT, [{"firstName": "Ann"}])


def consents(client: HealthExClient) -> Any:
    return client.list_consented_patients(PROJECT)


def link(client: HealthExClient) -> Any:
    return client.create_patient_link(PROJECT, "external-1")


def usage(client: HealthExClient) -> Any:
    return client.usage_summary("2026-01-01", "2026-02-01")


def metadata(client: HealthExClient) -> Any:
    return client.capability_statement()


POSTS, GETS = (add, consents, link), (usage, metadata)
EVERY = (update, *POSTS, *GETS)


def in_future(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def failure_of(call: Callable[[HealthExClient], Any], client: HealthExClient) -> HealthExError:
    with pytest.raises(HealthExError) as error:
        call(client)
    assert error.value.__cause__ is None
    assert error.value.__context__ is None
    return error.value


# Retried for every call


@pytest.mark.parametrize("call", EVERY)
def test_an_unsent_request_is_tried_five_times(connect: Connect, call: Any, caplog: pytest.LogCaptureFixture) -> None:
    error = failure_of(call, connect(base_url=f"http://127.0.0.1:{closed_port()}"))
    assert type(error) is HealthExConnectionError
    assert [record.args[2] for record in caplog.records if record.name == retries.__name__] == [1, 2, 3, 4]


@pytest.mark.parametrize("call", EVERY)
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (status(429), HealthExRateLimitError),
        (status(429, Retry_After="0"), HealthExRateLimitError),
        (status(429, Retry_After="soon"), HealthExRateLimitError),
        (status(503, Retry_After="0"), HealthExServerError),
        (status(503, Retry_After="Sun, 22 Nov 2020 17:40:05 GMT"), HealthExServerError),
    ],
)
def test_a_throttled_request_is_tried_five_times(
    service: Service, client: HealthExClient, call: Any, reply: Reply, kind: type[HealthExError]
) -> None:
    service.answers(reply)
    assert type(failure_of(call, client)) is kind
    assert len(service.received) == 5


@pytest.mark.parametrize("reply", [status(429), status(503, Retry_After="0")])
def test_a_request_throttled_once_succeeds(service: Service, client: HealthExClient, reply: Reply) -> None:
    service.answers(reply, says(STARTED))
    assert update(client).retrieval_id == "r-1"
    assert len(service.received) == 2


# Never retried


@pytest.mark.parametrize("call", EVERY)
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (300, HealthExApiError),
        (304, HealthExApiError),
        (400, HealthExRequestError),
        (401, HealthExAuthenticationError),
        (403, HealthExPermissionError),
        (404, HealthExNotFoundError),
        (408, HealthExRequestError),
        (409, HealthExRequestError),
        (422, HealthExRequestError),
    ],
)
def test_a_rejection_is_final(
    service: Service, client: HealthExClient, call: Any, code: int, kind: type[HealthExError]
) -> None:
    service.answers(status(code))
    error = failure_of(call, client)
    assert type(error) is kind
    assert isinstance(error, HealthExApiError)
    assert error.status_code == code
    assert len(service.received) == 1


# Updates


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (status(500), 500),
        (status(500, Retry_After="1"), 500),
        (status(502), 502),
        (status(504), 504),
        (status(520), 520),
        (status(524), 524),
        (status(503), 503),
        (status(503, Retry_After="soon"), 503),
        (status(503, Retry_After="-1"), 503),
        (closes(), None),
        (resets(), None),
        (raw(b"HTTP/1.1"), None),
        (raw(b"HTTP/1.1 201 Created\r\nConten"), 201),
        (raw(b"garbage\r\n\r\n"), None),
        (status(201), 201),
        (status(204), 204),
        (status(201, "started"), 201),
        (status(201, "<html>ok</html>"), 201),
        (says([STARTED]), 201),
        (says("IN_PROGRESS_NO_ACTION_NEEDED"), 201),
        (says({}), 201),
        (says({"message": "DONE"}, 200), 200),
        (says({"message": None}), 201),
        (raw(b"HTTP/1.1 201 Created\r\nContent-Length: 99\r\n\r\n", says(STARTED).body), 201),
        (raw(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n", b'5\r\n{"mes\r\n'), 201),
        (Reply(201, b"not gzip", {"Content-Encoding": "gzip"}), 201),
    ],
)
def test_an_ambiguous_update_is_requested_once(
    service: Service, client: HealthExClient, reply: Reply, code: int | None
) -> None:
    service.answers(reply)
    before = datetime.now(UTC)
    error = failure_of(update, client)
    assert type(error) is HealthExUpdateAmbiguousError
    assert "may bill a second retrieval" in str(error)
    assert error.status_code == code
    assert error.requested_at is not None
    assert error.requested_at.microsecond == 0
    assert abs(before - error.requested_at) < timedelta(seconds=5)
    assert len(service.received) == 1


def test_an_update_without_an_answer_in_time_is_requested_once(service: Service, connect: Connect) -> None:
    service.answers(service.stays_silent())
    error = failure_of(update, connect(read_timeout=0.1))
    assert type(error) is HealthExUpdateAmbiguousError
    assert "timed out" in str(error)
    assert error.status_code is None
    assert len(service.received) == 1


def test_an_update_whose_body_stalls_is_requested_once(service: Service, connect: Connect) -> None:
    service.answers(raw(b"HTTP/1.1 201 Created\r\nContent-Length: 99\r\n\r\n{", pause=0.5))
    error = failure_of(update, connect(read_timeout=0.1))
    assert type(error) is HealthExUpdateAmbiguousError
    assert error.status_code == 201
    assert len(service.received) == 1


@pytest.mark.parametrize("code", [501, 505, 511, 521, 522, 523, 530])
def test_a_server_error_before_an_update_began_is_final_and_not_ambiguous(
    service: Service, client: HealthExClient, code: int
) -> None:
    service.answers(status(code))
    error = failure_of(update, client)
    assert type(error) is HealthExServerError
    assert len(service.received) == 1


def test_an_ambiguous_update_has_the_requested_at_of_its_own_try(service: Service, client: HealthExClient) -> None:
    clock = datetime.now(UTC).replace(microsecond=0)
    first, second = clock + timedelta(minutes=5), clock + timedelta(minutes=10)
    service.answers(
        *(Reply(code, date=format_datetime(date, usegmt=True)) for code, date in ((429, first), (500, second)))
    )
    error = failure_of(update, client)
    assert isinstance(error, HealthExUpdateAmbiguousError)
    assert error.requested_at == second - timedelta(seconds=1)
    assert len(service.received) == 2


@pytest.mark.parametrize("code", [400, 404, 429, 500])
def test_an_error_whose_body_is_cut_off_is_still_that_error(
    service: Service, client: HealthExClient, code: int
) -> None:
    service.answers(raw(b"HTTP/1.1 %d X\r\nContent-Length: 99\r\n\r\nstudy paused" % code))
    error = failure_of(update, client)
    kinds = {400: HealthExRequestError, 404: HealthExNotFoundError, 429: HealthExRateLimitError}
    assert type(error) is kinds.get(code, HealthExUpdateAmbiguousError)
    assert "study paused" in str(error)


# Other POSTs


@pytest.mark.parametrize("call", POSTS)
@pytest.mark.parametrize("reply", [closes(), resets(), raw(b"HTTP/1.1 201 Created\r\nContent-Length: 99\r\n\r\n{")])
def test_a_lost_answer_of_a_post_is_left_to_the_caller(
    service: Service, client: HealthExClient, call: Any, reply: Reply
) -> None:
    service.answers(reply)
    error = failure_of(call, client)
    assert type(error) is HealthExConnectionError
    assert re.search("got no (readable|whole) answer: .*safe to retry", str(error))
    assert len(service.received) == 1


@pytest.mark.parametrize("call", POSTS)
def test_silence_after_a_post_is_left_to_the_caller(service: Service, connect: Connect, call: Any) -> None:
    service.answers(service.stays_silent())
    assert type(failure_of(call, connect(read_timeout=0.1))) is HealthExConnectionError
    assert len(service.received) == 1


@pytest.mark.parametrize("call", POSTS)
@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_a_server_error_after_a_post_is_left_to_the_caller(
    service: Service, client: HealthExClient, call: Any, code: int
) -> None:
    service.answers(status(code))
    assert type(failure_of(call, client)) is HealthExServerError
    assert len(service.received) == 1


@pytest.mark.parametrize("call", [*POSTS, *GETS])
def test_a_whole_answer_that_makes_no_sense_is_an_api_error(
    service: Service, client: HealthExClient, call: Any
) -> None:
    service.answers(says(7, 200))
    error = failure_of(call, client)
    assert type(error) is HealthExApiError
    assert error.status_code == 200
    assert len(service.received) == 1


# GETs


@pytest.mark.parametrize("call", GETS)
@pytest.mark.parametrize("code", [500, 501, 502, 503, 504, 524])
def test_a_get_is_tried_five_times_after_any_server_error(
    service: Service, client: HealthExClient, call: Any, code: int
) -> None:
    service.answers(status(code))
    assert type(failure_of(call, client)) is HealthExServerError
    assert len(service.received) == 5


@pytest.mark.parametrize("call", GETS)
def test_a_get_is_tried_five_times_after_silence(service: Service, connect: Connect, call: Any) -> None:
    service.answers(service.stays_silent())
    assert type(failure_of(call, connect(read_timeout=0.05))) is HealthExConnectionError
    assert len(service.received) == 5


def test_a_get_is_tried_again_after_a_body_that_stalls(service: Service, connect: Connect) -> None:
    service.answers(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", pause=0.5), says({"a": 1}))
    assert usage(connect(read_timeout=0.1)) == {"a": 1}
    assert len(service.received) == 2


@pytest.mark.parametrize("call", GETS)
@pytest.mark.parametrize("reply", [closes(), resets()])
def test_a_get_that_was_cut_off_is_left_to_the_caller(
    service: Service, client: HealthExClient, call: Any, reply: Reply
) -> None:
    service.answers(reply)
    assert type(failure_of(call, client)) is HealthExConnectionError
    assert len(service.received) == 1


# Waiting


@pytest.mark.parametrize("header", ["1", pytest.param(None, id="date")])
def test_a_retry_after_is_waited_for(service: Service, client: HealthExClient, header: str | None) -> None:
    service.answers(status(429, Retry_After=header or in_future(2)), says(STARTED))
    began = time.monotonic()
    update(client)
    assert 0.9 <= time.monotonic() - began < 10


def test_a_wait_beyond_the_budget_is_not_begun(service: Service, client: HealthExClient) -> None:
    service.answers(status(429, Retry_After="301"))
    began = time.monotonic()
    error = failure_of(update, client)
    assert isinstance(error, HealthExRateLimitError)
    assert error.retry_after == 301
    assert time.monotonic() - began < 30
    assert len(service.received) == 1


def waits_of(failed: FailedTry) -> list[float]:
    """Let every try fail, and return the waits between them."""
    waits: list[float] = []
    cancelled: Any = SimpleNamespace(is_set=lambda: False, wait=lambda timeout: waits.append(timeout))

    def send() -> Any:
        raise failed

    with pytest.raises(HealthExError) as error:
        retried(send, subject="x", rate_limit=RateLimit(), cancelled=cancelled)
    assert error.value is failed.error
    return waits


def test_the_budget_is_for_all_waits_together() -> None:
    assert waits_of(FailedTry(HealthExConnectionError("x"), retry=True, wait=120)) == [120, 120]


def test_without_a_retry_after_waits_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real backoff
    waits = waits_of(FailedTry(HealthExConnectionError("x"), retry=True))
    assert [int(wait) for wait in waits] == [1, 2, 4, 8]
    assert waits != [1, 2, 4, 8]


@pytest.mark.parametrize("wait", ["60", None])
def test_a_cancel_ends_a_wait_with_the_last_error(
    service: Service, client: HealthExClient, monkeypatch: pytest.MonkeyPatch, wait: str | None
) -> None:
    monkeypatch.setattr(retries, "BACKOFF", wait_fixed(60))
    service.answers(status(429, **({"Retry_After": wait} if wait else {})))
    threading.Timer(0.1, client.cancelled.set).start()
    began = time.monotonic()
    assert type(failure_of(update, client)) is HealthExRateLimitError
    assert time.monotonic() - began < 20
    assert len(service.received) == 1


def test_a_cancel_ends_waiting_for_the_rate_limit_with_the_last_error(service: Service, connect: Connect) -> None:
    client = connect(requests_per_second=0.01)
    service.answers(status(429))
    threading.Timer(0.1, client.cancelled.set).start()
    assert type(failure_of(update, client)) is HealthExRateLimitError
    assert len(service.received) == 1


@pytest.mark.parametrize("call", EVERY)
def test_after_a_cancel_nothing_is_sent(service: Service, connect: Connect, api_key: ApiKey, call: Any) -> None:
    for client in (connect(), connect(credentials=api_key)):
        client.cancelled.set()
        error = failure_of(call, client)
        assert type(error) is HealthExConnectionError
        assert "not sent: it was cancelled" in str(error)
    assert service.connections == 0


def test_a_cancel_keeps_the_answer_to_a_request_in_flight(service: Service, connect: Connect) -> None:
    client = connect(read_timeout=2)

    def late(handler: Any) -> None:
        client.cancelled.set()
        body = says(STARTED).body
        handler.wfile.write(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    service.answers(Reply(act=late))
    assert update(client).retrieval_id == "r-1"


def test_the_rate_limit_counts_every_request(service: Service, connect: Connect, api_key: ApiKey) -> None:
    service.answers_token_requests(says({"token": "first"}), says({"token": "second"}))
    service.answers(status(401), status(429), says(STARTED))
    began = time.monotonic()
    update(connect(credentials=api_key, requests_per_second=20))
    assert len(service.token_requests) + len(service.received) == 5
    assert 0.19 <= time.monotonic() - began < 10


def test_the_rate_limit_is_shared_by_the_clients_of_one_credential(
    service: Service, connect: Connect, api_key: ApiKey
) -> None:
    service.answers_token_requests(says({"token": "opaque"}))
    began = time.monotonic()
    for _ in range(3):
        update(connect(credentials=api_key, requests_per_second=20))
    assert time.monotonic() - began >= 0.14


def test_a_retry_is_logged_with_reason_and_wait(
    service: Service, client: HealthExClient, caplog: pytest.LogCaptureFixture
) -> None:
    service.answers(status(429, "slow down", Retry_After="0"), says(STARTED))
    update(client)
    (record,) = [record for record in caplog.records if record.name == retries.__name__]
    assert record.levelno == logging.WARNING
    assert record.message.startswith(f"Update of patient {PATIENT!r} rate limited (HTTP 429): slow down.")
    assert record.message.endswith("Retrying in 0.0 s (try 1 of 5).")


# Messages


@pytest.mark.parametrize("call", EVERY)
@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (status(400, "study paused"), "(HTTP 400): study paused."),
        (status(401), "(HTTP 401)."),
        (status(403), "(HTTP 403)."),
        (status(404), "(HTTP 404)."),
        (status(500), "(HTTP 500)."),
        (says(7, 200), "(HTTP 200): "),
        (closes(), "closed without an answer. "),
    ],
)
def test_an_error_begins_with_the_verdict_and_ends_with_the_call(
    service: Service, client: HealthExClient, call: Any, reply: Reply, verdict: str
) -> None:
    service.answers(reply)
    text = str(failure_of(call, client))
    assert verdict in text[: 80 + len(verdict)]
    assert "/v1" not in text[: text.index(verdict)]
    assert PATIENT in text[:40] or call is not update
