"""The scenarios: where a refresh is brought to, what happens to it there, and what must come of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from tests.crash.cluster import CELERY, LOCAL, VISIBILITY_TIMEOUT, Cluster
from tests.crash.dags import CONCURRENCY
from tests.crash.run import Expected, Outcome, Run

#: Patients of a cohort, and how many of them are answered before it is disturbed.
COHORT, BEFORE = 24, 8

#: Patients of a cohort that are handed over ahead of those in flight: a kill leaves them ambiguous, and not requested.
AHEAD = 1

#: Seconds for which the database is away.
DATABASE_AWAY = 20

#: Each patient is requested once, and the sensor waits for what that request brings.
ONCE = Expected()
#: Nobody can know whether it was sent, and on_ambiguous="fail" was chosen.
NEVER_SENT = Expected(requested=0, since=None, ends="failed")
ONCE_AMBIGUOUS = Expected(since=None, ends="failed")
#: Those handed over ahead of the killed requests may be left out; nobody is requested twice.
ONCE_AT_MOST = Expected(unsent=AHEAD)
TWICE = Expected(requested=2, since=2)


@dataclass(frozen=True)
class Point:
    """
    The point at which a refresh is interrupted.

    :param text: the same for people.
    :param bring: begins the run, and is left when it may go on.
    """

    text: str
    bring: Callable[[Run], AbstractContextManager[None]]


@dataclass(frozen=True)
class Event:
    """
    The interruption itself.

    :param text: the same for people.
    :param happen: makes it happen.
    :param to_all: for what can't be done to one run alone: all scenarios with it are brought to their points first.
    :param edits: whether it rewrites the DAG's file.
    """

    text: str
    happen: Callable[[Run], None] = lambda run: None
    to_all: Callable[[Cluster], None] | None = None
    edits: bool = False


@dataclass(frozen=True)
class Scenario:
    """
    A point, an event and what must come of it.

    :param options: of the DAG, see :func:`tests.crash.dags.refresh`.
    :param short: whether the short form runs it.
    """

    name: str
    event: Event
    point: Point
    expected: Expected = ONCE
    options: dict[str, Any] = field(default_factory=dict)
    executor: str = LOCAL
    short: bool = False

    @property
    def dag_id(self) -> str:
        return self.name

    @property
    def file(self) -> str:
        """The DAG file's name: one of its own where it is rewritten."""
        return f"{self.dag_id}.py" if self.event.edits else "scenarios.py"

    @property
    def when(self) -> str:
        """The point for people, with the argument that decides how a lost answer ends."""
        on_ambiguous = self.options.get("on_ambiguous")
        return f'{self.point.text} (`on_ambiguous="{on_ambiguous}"`)' if on_ambiguous else self.point.text

    @property
    def request_seconds(self) -> float:
        """How long a request takes that is under way at the event: longer where others are waited for."""
        return 25 if self.event.to_all else 6

    @property
    def patients(self) -> int:
        """How many patients it is for."""
        return COHORT if self.options.get("cohort") else 1


@dataclass(frozen=True)
class Result:
    """
    How a scenario ended.

    :param outcome: None where it broke off.
    :param seconds: that it took.
    :param error: why it broke off.
    """

    scenario: Scenario
    outcome: Outcome | None
    seconds: float
    error: str = ""

    @property
    def is_right(self) -> bool:
        """Whether what must come of it came."""
        return self.outcome is not None and self.scenario.expected.is_met_by(self.outcome)


# --- points


def _point(text: str) -> Callable[[Callable[[Run], Iterator[None]]], Point]:
    return lambda function: Point(text, contextlib.contextmanager(function))


@_point("before the request: the intent isn't stored")
def before_intent(run: Run) -> Iterator[None]:
    with run.journal("intent", "hold") as held:
        run.start()
        run.wait("the intent is on its way", held.reached.is_set)
        yield


@_point("before the request: the intent is stored")
def after_intent(run: Run) -> Iterator[None]:
    with run.journal("intent", "hold answer") as held:
        run.start()
        run.wait("the intent is stored", held.reached.is_set)
        yield


@_point("during the request")
def during_request(run: Run) -> Iterator[None]:
    run.start_slowly(*run.patients)
    yield


@_point("during a request that outlasts the visibility timeout")
def during_long_request(run: Run) -> Iterator[None]:
    run.start_slowly(*run.patients, seconds=VISIBILITY_TIMEOUT + 25)
    yield


@_point("after the request: the answer isn't stored")
def before_answer(run: Run) -> Iterator[None]:
    with run.journal("answer", "hold") as held:
        run.start()
        run.wait("the answer is on its way", held.reached.is_set)
        yield


@_point("after the request: the answer is stored")
def after_answer(run: Run) -> Iterator[None]:
    with run.journal("answer", "hold answer") as held:
        run.start()
        run.wait("the answer is stored", held.reached.is_set)
        yield


@_point("in the middle of a cohort")
def within_cohort(run: Run) -> Iterator[None]:
    run.start_slowly(*run.patients[BEFORE : BEFORE + CONCURRENCY])
    yield


@_point("while the sensor is deferred")
def deferred(run: Run) -> Iterator[None]:
    run.start()
    run.wait(
        "a triggerer has the trigger",
        lambda: run.cluster.database.query(
            "select 1 from trigger join task_instance t on t.trigger_id = trigger.id "
            "where t.dag_id = %s and trigger.triggerer_id is not null", run.dag_id,
        ),
    )  # fmt: skip
    yield


@_point("between two tries, the first killed after its request")
def between_tries(run: Run) -> Iterator[None]:
    with (within_cohort if run.options.get("cohort") else after_answer).bring(run):
        run.pause()  # the next try waits until all has happened that is to happen before it
        run.kill_task()
    run.wait_for_state("up_for_retry")
    yield
    run.pause(False)


@_point("after the run's end")
def at_rest(run: Run) -> Iterator[None]:
    run.start()
    run.finish()
    yield


def _while_failing(step: str, text: str) -> Point:
    @_point(text)
    def bring(run: Run) -> Iterator[None]:
        with run.journal(step, "fail") as failing:
            run.start()
            run.wait("the API has failed", failing.reached.is_set)
            run.wait_for_state("up_for_retry", "success", "failed")
            yield

    return bring


intent_fails = _while_failing("intent", "when the intent is stored")
answer_fails = _while_failing("answer", "when the answer is stored")

# --- events


def _reading_fails(run: Run) -> None:
    with run.journal("read", "fail") as failing:
        run.pause(False)
        run.wait("the API has failed", failing.reached.is_set)
        run.wait_for_state("up_for_retry", "success", "failed", try_number=2)


def _redelivered(run: Run) -> None:
    executor_id = run.task().executor_id
    assert executor_id

    def deliveries() -> int:
        logs = [part.log.read_text(errors="replace") for part in run.cluster.parts.values()]
        return sum(f"[{executor_id}] received" in line for log in logs for line in log.splitlines())

    run.wait("the task is delivered twice", lambda: deliveries() >= 2)


def _cleared_after_edit(retries: int, parsed: bool) -> Callable[[Run], None]:
    def happen(run: Run) -> None:
        run.edit(parsed=parsed, retries=retries)
        run.clear()

    return happen


TASK = Event("task process killed", Run.kill_task)
SUPERVISOR = Event("supervisor killed", Run.kill_supervisor)
WORKER = Event("Celery worker killed", Run.kill_worker)
SCHEDULER = Event("scheduler killed", to_all=Cluster.kill_scheduler)
TRIGGERER = Event("triggerer killed", to_all=Cluster.kill_triggerer)
MACHINES = Event("all Celery workers and their tasks killed", to_all=Cluster.kill_workers)
DATABASE = Event(f"database away for {DATABASE_AWAY} s", to_all=lambda cluster: cluster.stop_database(DATABASE_AWAY))
REDELIVERY = Event("Redis delivers the task again", _redelivered)
API = Event("Airflow's API answers 500")
READING = Event("Airflow's API answers 500 to the next try's first reading", _reading_fails)
CLEAR = Event("operator cleared, with the sensor", Run.clear)
CLEAR_SENSOR = Event("sensor cleared", lambda run: run.clear("arrival"))
CLEAR_OTHER = Event("another task of the run cleared", lambda run: run.clear("other"))
LOWER = Event("`retries` edited from 3 to 1", lambda run: run.edit(parsed=True, retries=1), edits=True)
RAISE = Event("`retries` edited from 2 to 5", lambda run: run.edit(parsed=True, retries=5), edits=True)
DROP = Event("`retries` edited from 1 to 0, parsed, and cleared", _cleared_after_edit(0, parsed=True), edits=True)
ADD = Event(
    "`retries` edited from 0 to 1, cleared before it is parsed", _cleared_after_edit(1, parsed=False), edits=True
)

_FAIL: dict[str, Any] = {"on_ambiguous": "fail"}
_COHORT: dict[str, Any] = {"cohort": True}
_DEFERRED: dict[str, Any] = {"deferrable": True}

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("task_after_intent", TASK, after_intent, NEVER_SENT, _FAIL),
    Scenario("task_during_request", TASK, during_request, short=True),
    Scenario("task_during_request_fail", TASK, during_request, ONCE_AMBIGUOUS, _FAIL),
    Scenario("task_after_answer", TASK, after_answer, short=True),
    Scenario("task_within_cohort", TASK, within_cohort, ONCE_AT_MOST, _COHORT, short=True),
    Scenario("supervisor_before_intent", SUPERVISOR, before_intent, short=True),
    Scenario("supervisor_after_intent", SUPERVISOR, after_intent, NEVER_SENT, _FAIL),
    Scenario("supervisor_during_request", SUPERVISOR, during_request),
    Scenario("supervisor_before_answer", SUPERVISOR, before_answer),
    Scenario("supervisor_after_answer", SUPERVISOR, after_answer),
    Scenario("supervisor_within_cohort", SUPERVISOR, within_cohort, ONCE_AT_MOST, _COHORT),
    Scenario("scheduler_during_request", SCHEDULER, during_request, short=True),
    Scenario("scheduler_after_answer", SCHEDULER, after_answer),
    Scenario("scheduler_within_cohort", SCHEDULER, within_cohort, ONCE_AT_MOST, _COHORT),
    Scenario("scheduler_between_tries", SCHEDULER, between_tries),
    Scenario("scheduler_deferred", SCHEDULER, deferred, options=_DEFERRED),
    Scenario("triggerer_deferred", TRIGGERER, deferred, options=_DEFERRED, short=True),
    Scenario("triggerer_deferred_cohort", TRIGGERER, deferred, options=_DEFERRED | _COHORT),
    Scenario("database_during_request", DATABASE, during_request, short=True),
    Scenario("database_within_cohort", DATABASE, within_cohort, ONCE_AT_MOST, _COHORT),
    Scenario("database_between_tries", DATABASE, between_tries),
    Scenario("database_deferred", DATABASE, deferred, options=_DEFERRED),
    Scenario("api_intent", API, intent_fails, short=True),
    Scenario("api_answer", API, answer_fails, options=_FAIL, short=True),
    Scenario("api_read", READING, between_tries, short=True),
    Scenario("api_intent_cohort", API, intent_fails, options=_COHORT),
    Scenario("api_answer_cohort", API, answer_fails, ONCE_AT_MOST, _COHORT),
    Scenario("retries_lowered", LOWER, between_tries, options={"retries": 3}, short=True),
    Scenario("retries_lowered_cohort", LOWER, between_tries, ONCE_AT_MOST, _COHORT | {"retries": 3}),
    Scenario("retries_raised", RAISE, between_tries),
    Scenario("retries_raised_cohort", RAISE, between_tries, ONCE_AT_MOST, _COHORT, short=True),
    Scenario("retries_dropped_cleared", DROP, at_rest, TWICE, {"retries": 1}),
    Scenario("retries_added_cleared", ADD, at_rest, TWICE, {"retries": 0}, short=True),
    Scenario("clear_at_rest", CLEAR, at_rest, TWICE, short=True),
    Scenario("clear_at_rest_cohort", CLEAR, at_rest, TWICE, _COHORT),
    Scenario("clear_during_request", CLEAR, during_request, TWICE),
    Scenario("clear_between_tries", CLEAR, between_tries, TWICE),
    Scenario("clear_sensor_at_rest", CLEAR_SENSOR, at_rest),
    Scenario("clear_other_between_tries", CLEAR_OTHER, between_tries, short=True),
    Scenario("clear_other_between_tries_cohort", CLEAR_OTHER, between_tries, ONCE_AT_MOST, _COHORT),
    Scenario("celery_task_during_request", TASK, during_request, executor=CELERY),
    Scenario("celery_supervisor_during_request", SUPERVISOR, during_request, executor=CELERY),
    Scenario("celery_supervisor_after_answer", SUPERVISOR, after_answer, executor=CELERY),
    Scenario("celery_worker_within_cohort", WORKER, within_cohort, ONCE_AT_MOST, _COHORT, executor=CELERY),
    Scenario("celery_machines_after_intent", MACHINES, after_intent, NEVER_SENT, _FAIL, executor=CELERY),
    Scenario("celery_machines_during_request", MACHINES, during_request, executor=CELERY, short=True),
    Scenario("celery_machines_after_answer", MACHINES, after_answer, executor=CELERY),
    Scenario("celery_machines_within_cohort", MACHINES, within_cohort, ONCE_AT_MOST, _COHORT, CELERY, short=True),
    Scenario("celery_machines_deferred", MACHINES, deferred, options=_DEFERRED, executor=CELERY),
    Scenario("celery_scheduler_during_request", SCHEDULER, during_request, executor=CELERY),
    Scenario("celery_redelivery", REDELIVERY, during_long_request, executor=CELERY),
)
