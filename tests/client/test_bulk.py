"""Many patients at once: each is asked once, a failure is one patient's alone, and nothing goes on for nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

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

from .loopback import PROJECT, STARTED, Received, Reply, Service, closed_port, closes, make_jwt, says, status

Connect = Callable[..., HealthExClient]


def patients(count: int) -> list[str]:
    return [f"patient-{number:04}" for number in range(count)]


def by_patient(**replies: Reply) -> Callable[[Received], Reply | None]:
    return lambda request: replies.get(request.patient_id.replace("-", "_"))


def only(client: HealthExClient, ids: list[str], **arguments: Any) -> dict[str, Any]:
    return {came.patient_id: came for came in client.update_patients(PROJECT, ids, **arguments)}


def busiest_second(service: Service) -> int:
    times = sorted(request.at for request in service.received)
    return max(sum(begin <= at < begin + 1 for at in times) for begin in times)


def test_each_patient_is_asked_once_and_yielded_once(service: Service, client: HealthExClient) -> None:
    came = list(client.update_patients(PROJECT, patients(50)))
    assert sorted(each.patient_id for each in came) == patients(50)
    assert all(isinstance(each, PatientUpdate) for each in came)
    assert service.asked() == dict.fromkeys(patients(50), 1)


def test_who_is_named_twice_is_asked_once(service: Service, client: HealthExClient) -> None:
    assert len(list(client.update_patients(PROJECT, ["a", "b", "a", "b", "a"]))) == 2
    assert service.asked() == {"a": 1, "b": 1}


def test_a_failure_is_one_patients_alone(service: Service, client: HealthExClient) -> None:
    service.answers_each(by_patient(patient_0003=status(404), patient_0007=closes()))
    came = only(client, patients(20))
    failures = {name: each for name, each in came.items() if isinstance(each, PatientUpdateFailure)}
    assert {name: type(each.error) for name, each in failures.items()} == {
        "patient-0003": HealthExNotFoundError,
        "patient-0007": HealthExUpdateAmbiguousError,
    }
    assert failures["patient-0003"].project_id == PROJECT
    assert len(came) == 20
    assert set(service.asked().values()) == {1}


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_no_more_are_asked_at_once_than_wanted(service: Service, connect: Connect, concurrency: int) -> None:
    service.answers(Reply(**{**vars(says(STARTED)), "after": 0.5}))
    only(connect(read_timeout=30), patients(concurrency + 1), max_concurrency=concurrency)
    assert service.most_at_once == concurrency
    assert service.connections <= concurrency


def test_all_share_one_minted_token(service: Service, connect: Connect, api_key: ApiKey) -> None:
    service.mints(says({"token": make_jwt()}))
    only(connect(credentials=api_key), patients(30))
    assert len(service.minted) == 1


def test_a_minted_token_that_is_refused_is_replaced_once_for_all(
    service: Service, connect: Connect, api_key: ApiKey
) -> None:
    old, new = make_jwt(jti="old"), make_jwt(jti="new")
    service.mints(says({"token": old}), says({"token": new}))
    service.answers_each(lambda request: status(401) if old in request.headers["Authorization"] else None)
    came = only(connect(credentials=api_key), patients(30))
    assert all(isinstance(each, PatientUpdate) for each in came.values())
    assert len(service.minted) == 2


def test_no_second_has_more_requests_than_the_limit(service: Service, connect: Connect) -> None:
    only(connect(requests_per_second=20), patients(50), max_concurrency=8)
    assert busiest_second(service) <= 20


@pytest.mark.parametrize("code", [429, 503])
def test_one_that_is_turned_away_slows_all_down(service: Service, client: HealthExClient, code: int) -> None:
    turned_away = [status(code, Retry_After="1")]

    def reply(request: Received) -> Reply:
        after_a_while = request.patient_id == "patient-0010" and turned_away
        return turned_away.pop() if after_a_while else Reply(**{**vars(says(STARTED)), "after": 0.02})

    service.answers_each(reply)
    came = only(client, patients(40), max_concurrency=4)
    assert all(isinstance(each, PatientUpdate) for each in came.values())
    refused = next(each.at for each in service.received if each.patient_id == "patient-0010")
    # Those already on their way may still arrive.
    during = [each for each in service.received if refused + 0.05 < each.at < refused + 0.95]
    assert during == []
    assert service.asked()["patient-0010"] == 2
    assert len(service.received) == 41


@pytest.mark.parametrize(("code", "kind"), [(401, HealthExAuthenticationError), (403, HealthExPermissionError)])
def test_what_is_refused_to_all_is_not_asked_for_all(
    service: Service, client: HealthExClient, code: int, kind: type[Exception]
) -> None:
    service.answers_each(lambda request: status(code) if request.patient_id >= "patient-0100" else None)
    came = only(client, patients(500), max_concurrency=4)
    failures = [each for each in came.values() if isinstance(each, PatientUpdateFailure)]
    assert {type(each.error) for each in failures} == {kind}
    assert 1 <= len(failures) <= 8
    assert set(came) == set(service.asked())


def test_a_service_that_is_down_is_given_up(connect: Connect) -> None:
    came = only(connect(base_url=f"http://127.0.0.1:{closed_port()}"), patients(500), max_concurrency=4)
    assert {type(each.error) for each in came.values()} == {HealthExConnectionError}
    assert FAILURES_IN_A_ROW <= len(came) <= FAILURES_IN_A_ROW + 8


def test_a_service_that_fails_every_update_makes_few_ambiguous(service: Service, client: HealthExClient) -> None:
    service.answers(status(500))
    came = only(client, patients(500), max_concurrency=4)
    assert FAILURES_IN_A_ROW <= len(came) == len(service.received) <= FAILURES_IN_A_ROW + 8


def test_many_failures_with_answers_between_are_not_given_up(service: Service, client: HealthExClient) -> None:
    service.answers_each(lambda request: None if request.patient_id.endswith("0") else status(500))
    assert len(only(client, patients(100), max_concurrency=1)) == 100


def test_a_wait_beyond_all_patience_ends_it(service: Service, client: HealthExClient) -> None:
    service.answers(status(429, Retry_After="3600"))
    came = only(client, patients(100), max_concurrency=2)
    assert {type(each.error) for each in came.values()} == {HealthExRateLimitError}
    assert len(service.received) <= 4


def test_after_a_stop_nobody_is_asked_and_waits_end(service: Service, client: HealthExClient) -> None:
    service.answers(says(STARTED), says(STARTED), says(STARTED), status(429, Retry_After="60"))
    timer = threading.Timer(0.3, client.cancelled.set)
    timer.start()
    began = time.monotonic()
    came = only(client, patients(100), max_concurrency=2)
    assert time.monotonic() - began < 20
    assert set(came) == set(service.asked())
    assert len(came) <= 6


def test_closing_it_ends_waits_and_asks_nobody_more(service: Service, client: HealthExClient) -> None:
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

    for came in client.update_patients(PROJECT, patients(60), max_concurrency=4, checkpoint=checkpoint):
        yielded.add(came.patient_id)
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


def test_a_patient_who_waits_for_a_turn_is_not_in_the_checkpoint(service: Service, connect: Connect) -> None:
    ahead: list[int] = []

    def checkpoint(in_flight: Any) -> None:
        ahead.append(len(set(in_flight) - set(service.asked())))

    only(connect(requests_per_second=20), patients(12), max_concurrency=8, checkpoint=checkpoint)
    assert max(ahead) <= 2


def test_a_patient_who_waits_for_a_retry_is_not_in_the_checkpoint(service: Service, client: HealthExClient) -> None:
    service.answers(status(429, Retry_After="1"), says(STARTED))
    written: list[Any] = []
    list(client.update_patients(PROJECT, ["a"], checkpoint=written.append))
    assert [list(each) for each in written if each] == [["a"], ["a"]]
    first, second = (index for index, each in enumerate(written) if each)
    assert list(written[first + 1]) == []
    assert second > first + 1


def test_a_failing_checkpoint_ends_it_and_throws_no_answer_away(service: Service, client: HealthExClient) -> None:
    written: list[Any] = []
    came: list[str] = []
    service.answers(Reply(**{**vars(says(STARTED)), "after": 0.1}))

    def checkpoint(in_flight: Any) -> None:
        if len(came) >= 5:
            raise RuntimeError("the store is away")
        written.extend(in_flight)

    def consume() -> None:
        for each in client.update_patients(PROJECT, patients(60), max_concurrency=4, checkpoint=checkpoint):
            came.append(each.patient_id)

    with pytest.raises(RuntimeError, match="away"):
        consume()
    assert set(service.asked()) <= set(written)
    assert sorted(came) == sorted(service.asked().elements())


def test_the_checkpoint_of_one_patient_is_called_around_each_try(service: Service, client: HealthExClient) -> None:
    service.answers(status(429, Retry_After="0"), says(STARTED))
    written: list[Any] = []
    client.update_patient(
        PROJECT, "a", checkpoint=lambda in_flight: written.append((*in_flight, len(service.received)))
    )
    assert written == [("a", 0), (1,), ("a", 1)]


def test_a_token_that_is_refused_is_no_request_in_flight(service: Service, connect: Connect, api_key: ApiKey) -> None:
    old, new = make_jwt(jti="old"), make_jwt(jti="new")
    service.mints(says({"token": old}), says({"token": new}))
    service.answers_each(lambda request: status(401) if old in request.headers["Authorization"] else None)
    written: list[Any] = []
    connect(credentials=api_key).update_patient(PROJECT, "a", checkpoint=lambda each: written.append(list(each)))
    assert written == [["a"], [], ["a"]]


def test_an_id_that_cannot_be_used_is_refused_with_its_position(service: Service, client: HealthExClient) -> None:
    with pytest.raises(HealthExConfigurationError, match=r"^patient_ids\[2\] must not have a ZERO WIDTH SPACE"):
        client.update_patients(PROJECT, ["a", "b", "c\u200b", "d"])
    assert service.received == []


@pytest.mark.parametrize("ids", ["patient", {"patient": 1}, None, 7, ["a", ""], ["a", 7], ["a", ".."]])
def test_ids_that_cannot_be_used_are_refused_before_anybody_is_asked(
    service: Service, client: HealthExClient, ids: Any
) -> None:
    with pytest.raises(HealthExConfigurationError):
        client.update_patients(PROJECT, ids)
    assert service.received == []


@pytest.mark.parametrize("concurrency", [0, -1, 33, 1.5, True, "8", None])
def test_a_concurrency_that_cannot_be_used_is_refused(client: HealthExClient, concurrency: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match="max_concurrency"):
        client.update_patients(PROJECT, ["a"], max_concurrency=concurrency)


def test_an_expired_token_is_told_at_once(service: Service, connect: Connect) -> None:
    with pytest.raises(HealthExTokenError):
        connect(credentials=StoredToken(make_jwt(-300))).update_patients(PROJECT, ["a"])
    assert service.received == []
