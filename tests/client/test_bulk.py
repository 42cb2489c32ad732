"""Many patients at once: each is requested once, a failure is one patient's alone, and the circuit breaker opens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from helpers.loopback import PROJECT, STARTED, Received, Reply, Service, closed_port, closes, make_jwt, says, status

from airflow_provider_healthex.client import ApiKey, HealthExClient, PatientUpdate, PatientUpdateFailure, StoredToken
from airflow_provider_healthex.client.bulk import FAILURES_IN_A_ROW
from airflow_provider_healthex.exceptions import (
    HealthExAuthenticationError,
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExNotFoundError,
    HealthExPermissionError,
    HealthExRateLimitError,
    HealthExTokenError,
    HealthExUpdateAmbiguousError,
)

Connect = Callable[..., HealthExClient]


def patients(count: int) -> list[str]:
    return [f"patient-{number:04}" for number in range(count)]


def by_patient(**replies: Reply) -> Callable[[Received], Reply | None]:
    return lambda request: replies.get(request.patient_id.replace("-", "_"))


def only(client: HealthExClient, ids: list[str], **arguments: Any) -> dict[str, Any]:
    return {each.patient_id: each for each in client.update_patients(PROJECT, ids, **arguments)}


def busiest_second(service: Service) -> int:
    times = sorted(request.at for request in service.received)
    return max(sum(begin <= at < begin + 1 for at in times) for begin in times)


def test_each_patient_is_requested_once_and_yielded_once(service: Service, client: HealthExClient) -> None:
    results = list(client.update_patients(PROJECT, patients(50)))
    assert sorted(each.patient_id for each in results) == patients(50)
    assert all(isinstance(each, PatientUpdate) for each in results)
    assert service.asked() == dict.fromkeys(patients(50), 1)


def test_a_patient_given_twice_is_requested_once(service: Service, client: HealthExClient) -> None:
    assert len(list(client.update_patients(PROJECT, ["a", "b", "a", "b", "a"]))) == 2
    assert service.asked() == {"a": 1, "b": 1}


def test_a_failure_is_one_patients_alone(service: Service, client: HealthExClient) -> None:
    service.answers_each(by_patient(patient_0003=status(404), patient_0007=closes()))
    results = only(client, patients(20))
    failures = {name: each for name, each in results.items() if isinstance(each, PatientUpdateFailure)}
    assert {name: type(each.error) for name, each in failures.items()} == {
        "patient-0003": HealthExNotFoundError,
        "patient-0007": HealthExUpdateAmbiguousError,
    }
    assert failures["patient-0003"].project_id == PROJECT
    assert len(results) == 20
    assert set(service.asked().values()) == {1}


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_no_more_requests_are_in_flight_than_wanted(service: Service, connect: Connect, concurrency: int) -> None:
    service.answers(Reply(**{**vars(says(STARTED)), "after": 0.5}))
    only(connect(read_timeout=30), patients(concurrency + 1), max_concurrency=concurrency)
    assert service.most_at_once == concurrency
    assert service.connections <= concurrency


def test_all_patients_share_one_requested_token(service: Service, connect: Connect, api_key: ApiKey) -> None:
    service.answers_token_requests(says({"token": make_jwt()}))
    only(connect(credentials=api_key), patients(30))
    assert len(service.token_requests) == 1


def test_a_rejected_requested_token_is_replaced_once_for_all_patients(
    service: Service, connect: Connect, api_key: ApiKey
) -> None:
    old, new = make_jwt(jti="old"), make_jwt(jti="new")
    service.answers_token_requests(says({"token": old}), says({"token": new}))
    service.answers_each(lambda request: status(401) if old in request.headers["Authorization"] else None)
    results = only(connect(credentials=api_key), patients(30))
    assert all(isinstance(each, PatientUpdate) for each in results.values())
    assert len(service.token_requests) == 2


def test_no_second_has_more_requests_than_the_limit(service: Service, connect: Connect) -> None:
    only(connect(requests_per_second=20), patients(50), max_concurrency=8)
    assert busiest_second(service) <= 20


@pytest.mark.parametrize("code", [429, 503])
def test_a_throttled_request_slows_all_down(service: Service, client: HealthExClient, code: int) -> None:
    throttled = [status(code, Retry_After="1")]

    def reply(request: Received) -> Reply:
        after_a_while = request.patient_id == "patient-0010" and throttled
        return throttled.pop() if after_a_while else Reply(**{**vars(says(STARTED)), "after": 0.02})

    service.answers_each(reply)
    results = only(client, patients(40), max_concurrency=4)
    assert all(isinstance(each, PatientUpdate) for each in results.values())
    throttled_at = next(each.at for each in service.received if each.patient_id == "patient-0010")
    # Those already on their way may still arrive.
    during = [each for each in service.received if throttled_at + 0.05 < each.at < throttled_at + 0.95]
    assert during == []
    assert service.asked()["patient-0010"] == 2
    assert len(service.received) == 41


@pytest.mark.parametrize(("code", "kind"), [(401, HealthExAuthenticationError), (403, HealthExPermissionError)])
def test_an_error_of_every_patient_opens_the_circuit_breaker(
    service: Service, client: HealthExClient, code: int, kind: type[Exception]
) -> None:
    service.answers_each(lambda request: status(code) if request.patient_id >= "patient-0100" else None)
    results = only(client, patients(500), max_concurrency=4)
    failures = [each for each in results.values() if isinstance(each, PatientUpdateFailure)]
    assert {type(each.error) for each in failures} == {kind}
    assert 1 <= len(failures) <= 8
    assert set(results) == set(service.asked())


def test_a_service_that_is_down_opens_the_circuit_breaker(connect: Connect) -> None:
    results = only(connect(base_url=f"http://127.0.0.1:{closed_port()}"), patients(500), max_concurrency=4)
    assert {type(each.error) for each in results.values()} == {HealthExConnectionError}
    assert FAILURES_IN_A_ROW <= len(results) <= FAILURES_IN_A_ROW + 8


def test_a_service_that_fails_every_update_makes_few_ambiguous(service: Service, client: HealthExClient) -> None:
    service.answers(status(500))
    results = only(client, patients(500), max_concurrency=4)
    assert FAILURES_IN_A_ROW <= len(results) == len(service.received) <= FAILURES_IN_A_ROW + 8


def test_answers_between_failures_keep_the_circuit_breaker_closed(service: Service, client: HealthExClient) -> None:
    service.answers_each(lambda request: None if request.patient_id.endswith("0") else status(500))
    assert len(only(client, patients(100), max_concurrency=1)) == 100


def test_a_retry_after_beyond_the_longest_wait_opens_the_circuit_breaker(
    service: Service, client: HealthExClient
) -> None:
    service.answers(status(429, Retry_After="3600"))
    results = only(client, patients(100), max_concurrency=2)
    assert {type(each.error) for each in results.values()} == {HealthExRateLimitError}
    assert len(service.received) <= 4


def test_after_a_cancel_no_patient_is_requested_and_waits_end(service: Service, client: HealthExClient) -> None:
    service.answers(says(STARTED), says(STARTED), says(STARTED), status(429, Retry_After="60"))
    timer = threading.Timer(0.3, client.cancelled.set)
    timer.start()
    began = time.monotonic()
    results = only(client, patients(100), max_concurrency=2)
    assert time.monotonic() - began < 20
    assert set(results) == set(service.asked())
    assert len(results) <= 6


def test_closing_the_iterator_ends_waits_and_requests_no_more_patients(
    service: Service, client: HealthExClient
) -> None:
    service.answers(says(STARTED), status(429, Retry_After="60"))
    updates = client.update_patients(PROJECT, patients(100), max_concurrency=2)
    next(updates)
    began = time.monotonic()
    updates.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 20
    asked = len(service.received)
    time.sleep(0.2)
    assert len(service.received) == asked <= 4
    service.answers(says(STARTED))
    assert not client.cancelled.is_set()


def test_it_runs_no_further_ahead_than_it_is_consumed(service: Service, client: HealthExClient) -> None:
    updates = client.update_patients(PROJECT, patients(100), max_concurrency=4)
    for _ in range(10):
        next(updates)
    time.sleep(0.2)
    assert len(service.received) <= 10 + 4 + 4
    updates.close()  # type: ignore[attr-defined]


def test_the_checkpoint_has_a_patient_before_the_request_and_until_the_outcome_is_yielded(
    service: Service, client: HealthExClient
) -> None:
    written: list[set[str]] = []
    yielded: set[str] = set()

    def checkpoint(in_flight: Any) -> None:
        time.sleep(0.005)
        assert set(service.asked()) <= set().union(*written)
        written.append(set(in_flight))
        assert set(service.asked()) - yielded <= written[-1]

    for result in client.update_patients(PROJECT, patients(60), max_concurrency=4, checkpoint=checkpoint):
        yielded.add(result.patient_id)
    assert set().union(*written) == set(patients(60))
    assert max(map(len, written)) <= 4 + 1
    assert written[-1] == set()


def test_one_checkpoint_serves_several_requests(service: Service, client: HealthExClient) -> None:
    calls: list[Any] = []

    def checkpoint(in_flight: Any) -> None:
        calls.append(in_flight)
        time.sleep(0.05)

    assert len(only(client, patients(200), max_concurrency=8, checkpoint=checkpoint)) == 200
    assert len(calls) < 140


def test_a_patient_waiting_for_the_rate_limit_is_not_in_the_checkpoint(service: Service, connect: Connect) -> None:
    ahead: list[int] = []

    def checkpoint(in_flight: Any) -> None:
        ahead.append(len(set(in_flight) - set(service.asked())))

    only(connect(requests_per_second=20), patients(12), max_concurrency=8, checkpoint=checkpoint)
    assert max(ahead) <= 2


def test_a_patient_waiting_for_a_retry_is_not_in_the_checkpoint(service: Service, client: HealthExClient) -> None:
    service.answers(status(429, Retry_After="1"), says(STARTED))
    written: list[Any] = []
    list(client.update_patients(PROJECT, ["a"], checkpoint=written.append))
    assert [list(each) for each in written if each] == [["a"], ["a"]]
    first, second = (index for index, each in enumerate(written) if each)
    assert list(written[first + 1]) == []
    assert second > first + 1


def test_a_failing_checkpoint_ends_it_and_throws_no_answer_away(service: Service, client: HealthExClient) -> None:
    written: list[Any] = []
    results: list[str] = []
    service.answers(Reply(**{**vars(says(STARTED)), "after": 0.1}))

    def checkpoint(in_flight: Any) -> None:
        if len(results) >= 5:
            raise RuntimeError("the store is away")
        written.extend(in_flight)

    def consume() -> None:
        for each in client.update_patients(PROJECT, patients(60), max_concurrency=4, checkpoint=checkpoint):
            results.append(each.patient_id)

    with pytest.raises(RuntimeError, match="away"):
        consume()
    assert set(service.asked()) <= set(written)
    assert sorted(results) == sorted(service.asked().elements())


def test_the_checkpoint_of_one_patient_is_called_around_each_try(service: Service, client: HealthExClient) -> None:
    service.answers(status(429, Retry_After="0"), says(STARTED))
    written: list[Any] = []
    client.update_patient(
        PROJECT, "a", checkpoint=lambda in_flight: written.append((*in_flight, len(service.received)))
    )
    assert written == [("a", 0), (1,), ("a", 1)]


def test_a_try_with_a_rejected_token_is_not_in_flight(service: Service, connect: Connect, api_key: ApiKey) -> None:
    old, new = make_jwt(jti="old"), make_jwt(jti="new")
    service.answers_token_requests(says({"token": old}), says({"token": new}))
    service.answers_each(lambda request: status(401) if old in request.headers["Authorization"] else None)
    written: list[Any] = []
    connect(credentials=api_key).update_patient(PROJECT, "a", checkpoint=lambda each: written.append(list(each)))
    assert written == [["a"], [], ["a"]]


def test_an_unusable_id_is_rejected_with_its_position(service: Service, client: HealthExClient) -> None:
    with pytest.raises(HealthExConfigurationError, match=r"^patient_ids\[2\] must not have a ZERO WIDTH SPACE"):
        client.update_patients(PROJECT, ["a", "b", "c\u200b", "d"])
    assert service.received == []


@pytest.mark.parametrize("ids", ["patient", {"patient": 1}, None, 7, ["a", ""], ["a", 7], ["a", ".."]])
def test_unusable_ids_are_rejected_before_any_request(service: Service, client: HealthExClient, ids: Any) -> None:
    with pytest.raises(HealthExConfigurationError):
        client.update_patients(PROJECT, ids)
    assert service.received == []


@pytest.mark.parametrize("concurrency", [0, -1, 33, 1.5, True, "8", None])
def test_an_unusable_concurrency_is_rejected(client: HealthExClient, concurrency: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match="max_concurrency"):
        client.update_patients(PROJECT, ["a"], max_concurrency=concurrency)


def test_an_expired_token_is_reported_at_once(service: Service, connect: Connect) -> None:
    with pytest.raises(HealthExTokenError):
        connect(credentials=StoredToken(make_jwt(-300))).update_patients(PROJECT, ["a"])
    assert service.received == []
