"""One scenario on a running Airflow: bring its DAG to a point, let something happen, and see how it ends."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow_provider_healthex.sandbox import Sandbox
from tests.crash.cluster import Cluster, Task, kill_processes, wait_for
from tests.crash.proxy import Rule

RUN_ID = "crash"

#: Seconds within which a run ends once nothing is in its way.
PATIENCE = 240


@dataclass(frozen=True)
class Expected:
    """
    The required outcome of a run.

    :param requested: how often each patient is requested, and each of these requests is accepted.
    :param unsent: how many patients may be left without any request.
    :param since: which request of a patient the sensor measures from: 1 for the first; None: there is no result.
    :param ends: the run's state.
    """

    requested: int = 1
    unsent: int = 0
    since: int | None = 1
    ends: str = "success"

    def is_met_by(self, outcome: Outcome) -> bool:
        """Return whether this came of it."""
        times = {each for each, patients in outcome.requested.items() if each or patients > self.unsent}
        return (
            times == {self.requested}
            and outcome.requested == outcome.accepted
            and (outcome.since, outcome.ends) == (self.since, self.ends)
        )


@dataclass(frozen=True)
class Outcome:
    """
    The outcome of a run.

    :param requested: of how many patients ``$updateData`` arrived how often.
    :param accepted: for how many patients HealthEx started how many retrievals.
    :param since: as in :class:`Expected`; 0: none of the patient's requests, or not the operator's.
    :param ends: the run's state.
    :param tries: of the operator, clears included; for people alone.
    """

    requested: Mapping[int, int]
    accepted: Mapping[int, int]
    since: int | None
    ends: str
    tries: int = 0


@dataclass
class Run:
    """
    A scenario's DAG with its only run.

    :param options: of :func:`tests.crash.dags.refresh`.
    :param request_seconds: how long a request takes that is under way when something happens: long enough for it.
    """

    dag_id: str
    cluster: Cluster
    patients: Sequence[str]
    options: dict[str, Any]
    request_seconds: float
    _under_way: Sequence[str] = ()
    _delivered: dict[str, int] = field(default_factory=dict)

    @property
    def sandbox(self) -> Sandbox:
        return self.cluster.sandbox

    # --- driving it

    def start(self) -> None:
        self.cluster.api("POST", f"dags/{self.dag_id}/dagRuns", dag_run_id=RUN_ID, logical_date=None)

    def task(self, task_id: str = "refresh") -> Task:
        return self.cluster.task(self.dag_id, task_id)

    def wait(self, what: str, found: Callable[[], Any], *, seconds: float = 90, every: float = 0.1) -> Any:
        return wait_for(f"{self.dag_id}: {what}", found, seconds=seconds, every=every)

    def wait_for_state(self, *states: str, task_id: str = "refresh", try_number: int = 1) -> None:
        def reached() -> bool:
            task = self.task(task_id)
            return task.state in states and task.try_number >= try_number

        self.wait(f"{task_id} is {' or '.join(states)}", reached)

    @property
    def is_requested(self) -> bool:
        return any(self.sandbox.requests(each) for each in self.patients)

    def start_slowly(self, *patients: str, seconds: float | None = None) -> None:
        """Start, and return when the requests for these patients are under way; their answers take their time."""
        for patient_id in patients:
            seconds = seconds or self.request_seconds
            self.sandbox.faults.add("update", "slow", seconds=seconds, patient_id=patient_id)
        self.start()
        self.wait("the requests are under way", lambda: all(self.sandbox.asked(each) for each in patients))
        self._under_way = patients

    def check_point(self) -> None:
        """Raise where what was under way has ended: what happens now would be too late."""
        for patient_id in self._under_way:
            if any(each.status for each in self.sandbox.requests(patient_id)):
                raise TimeoutError(f"{self.dag_id}: the request was answered before anything happened to it")

    @contextlib.contextmanager
    def journal(self, step: str, action: str) -> Iterator[Rule]:
        """
        Hold or fail a call of the operator's journal to Airflow's API server.

        :param step: ``read``, ``intent`` (what is kept before the first request) or ``answer`` (what is kept after).
        :param action: of :class:`~tests.crash.proxy.Rule`.
        """

        def matches(method: str, path: str) -> bool:
            _, found, rest = path.partition("/store/ti/")
            if not found or method != ("GET" if step == "read" else "PUT"):
                return False
            if step != "read" and self.is_requested is not (step == "answer"):
                return False
            return self.cluster.dag_of(rest.partition("/")[0]) == self.dag_id

        with self.cluster.proxy.rule(matches, action) as rule:
            yield rule

    def pause(self, paused: bool = True) -> None:
        """Let the scheduler start no more of the DAG's tasks, or let it again."""
        self.cluster.api("PATCH", f"dags/{self.dag_id}?update_mask=is_paused", is_paused=paused)

    def clear(self, task_id: str = "refresh") -> None:
        """Clear a task with what follows, as a person does in the UI."""
        self.cluster.api(
            "POST", f"dags/{self.dag_id}/clearTaskInstances", dry_run=False, dag_run_id=RUN_ID, task_ids=[task_id],
            only_failed=False, include_downstream=True, reset_dag_runs=True,
        )  # fmt: skip

    def edit(self, *, parsed: bool, **options: Any) -> None:
        """
        Rewrite the DAG's file.

        :param parsed: whether the DAG processor parses it before this returns; otherwise it doesn't notice.
        """
        file = Path(self.cluster.home.environment["AIRFLOW__CORE__DAGS_FOLDER"], f"{self.dag_id}.py")
        before, parsed_at = file.stat(), self._parsed_at()
        scratch = file.with_suffix(".new")
        scratch.write_text(dag_file([(self.dag_id, self.patients, {**self.options, **options})], self.sandbox.bucket))
        scratch.replace(file)
        if parsed:
            self.wait("the file is parsed", lambda: self._parsed_at() > parsed_at)
        else:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _parsed_at(self) -> datetime:
        ((moment,),) = self.cluster.database.query("select last_parsed_time from dag where dag_id = %s", self.dag_id)
        return moment

    # --- what is killed

    def kill_task(self) -> None:
        kill_processes(self.cluster.process_of_task(self.dag_id, "refresh"))

    def kill_supervisor(self) -> None:
        """Kill the process that watches the task: one of LocalExecutor's workers, or of a Celery worker's pool."""
        process = self.cluster.process_of_task(self.dag_id, "refresh").parent()
        assert process
        kill_processes(process)

    def kill_worker(self) -> None:
        """Kill the Celery worker alone; the process of its pool and the task are left without it."""
        parents = {each.pid for each in self.cluster.process_of_task(self.dag_id, "refresh").parents()}
        part = next(part for part in self.cluster.parts.values() if part.pid in parents)
        part.kill(with_children=False)

    # --- how it ends

    def finish(self) -> None:
        """Deliver for all that were accepted as soon as they are waited for, and let the run end."""

        def has_ended() -> bool:
            if self.task().state == "success" and not self.task("arrival").has_ended:
                self._deliver()
            return self.cluster.run_state(self.dag_id) in ("success", "failed")

        self.wait("the run ends", has_ended, seconds=PATIENCE, every=0.3)
        self.wait("HealthEx has answered", lambda: all(each.status for each in self._requests()))

    def outcome(self) -> Outcome:
        requested = Counter(self.sandbox.asked(each) for each in self.patients)
        accepted = Counter(self.sandbox.accepted(each) for each in self.patients)
        ends = self.cluster.run_state(self.dag_id) or "unknown"
        return Outcome(requested, accepted, self._since(), ends, self.task().try_number)

    def _requests(self) -> list[Any]:
        return [each for patient_id in self.patients for each in self.sandbox.requests(patient_id)]

    def _deliver(self) -> None:
        for patient_id in self.patients:
            accepted = self.sandbox.accepted(patient_id)
            if accepted > self._delivered.get(patient_id, 0):
                self._delivered[patient_id] = accepted
                self.sandbox.deliver(patient_id)

    def _since(self) -> int | None:
        """Return which request the sensor measured from, 0 where that can't be said."""
        update, arrival = (self.cluster.result(self.dag_id, task_id) for task_id in ("refresh", "arrival"))
        if not update or not arrival:
            return None
        entries = update["in_progress"] if self.options.get("cohort") else [update]
        if "since" in arrival and arrival["since"] != update["requested_at"]:
            return 0
        numbers = {
            self._request_at(each["patient_id"], each["requested_at"])
            for each in entries
            if self.sandbox.asked(each["patient_id"])
        }
        return numbers.pop() if len(numbers) == 1 else 0

    def _request_at(self, patient_id: str, requested_at: str) -> int:
        """Return the number of the request that came just after a ``requested_at``."""
        moment = datetime.fromisoformat(requested_at)
        at = [each.at for each in self.sandbox.requests(patient_id)]
        return next((number for number, each in enumerate(at, 1) if each >= moment), 0)


#: Id, patients and options of a DAG.
Dag = tuple[str, Sequence[str], dict[str, Any]]


def dag_file(dags: Sequence[Dag], bucket: str) -> str:
    """Return the text of a DAG file."""
    lines = [
        f"{dag_id} = refresh({dag_id!r}, {list(patients)!r}, bucket={bucket!r}, **{options!r})"
        for dag_id, patients, options in dags
    ]
    return "\n".join(["from tests.crash.dags import refresh", *lines, ""])
