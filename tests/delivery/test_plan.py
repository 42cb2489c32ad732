"""Running threads of requests side by side."""

from __future__ import annotations

import pytest

from airflow_provider_healthex.delivery.plan import alone, together


def thread(name: str, requests: int):
    """Request ``requests`` times, and return the answers."""
    answers = []
    for number in range(requests):
        answers.append((yield f"{name}{number}"))
    return name, answers


def drive(plan):
    """Answer each request with itself in capitals; return what the plan returns, and its batches."""
    batches = []
    try:
        batch = next(plan)
        while True:
            batches.append(list(batch))
            batch = plan.send([request.upper() for request in batch])
    except StopIteration as end:
        return end.value, batches


def test_each_thread_gets_the_answers_to_its_own_requests():
    results, batches = drive(together([thread("a", 1), thread("b", 3), thread("c", 2)], 9))
    assert sorted(results) == [("a", ["A0"]), ("b", ["B0", "B1", "B2"]), ("c", ["C0", "C1"])]
    assert batches == [["a0", "b0", "c0"], ["b1", "c1"], ["b2"]]


def test_no_more_than_the_width_run_at_a_time_and_another_starts_where_one_ends():
    _, batches = drive(together((thread(name, requests) for name, requests in [("a", 1), ("b", 3), ("c", 1)]), 2))
    assert batches == [["a0", "b0"], ["b1", "c0"], ["b2"]]


def test_threads_without_requests_take_no_place():
    results, batches = drive(together([*(thread(f"x{number}", 0) for number in range(100)), thread("a", 1)], 2))
    assert len(results) == 101
    assert batches == [["a0"]]


def test_no_threads_need_no_batch():
    assert drive(together([], 2)) == ([], [])


def test_a_thread_alone_returns_its_own_result():
    assert drive(alone(thread("a", 2))) == (("a", ["A0", "A1"]), [["a0"], ["a1"]])


def test_an_error_of_a_thread_ends_the_plan():
    def broken():
        yield "request"
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        drive(together([broken(), thread("a", 5)], 2))


def test_an_answer_too_few_is_an_error():
    plan = together([thread("a", 1), thread("b", 1)], 2)
    next(plan)
    with pytest.raises(ValueError):
        plan.send(["A0"])
