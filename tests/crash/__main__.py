"""``python -m tests.crash [name …] [--short] [--write]``: run the scenarios, and fail where one ends as it must not."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.cohort import cohort_scenarios
from testing import Unavailable
from tests.crash import page
from tests.crash.cluster import CELERY, LOCAL, Cluster, cluster, interrupted, wait_for
from tests.crash.run import Dag, Run, dag_file
from tests.crash.scenarios import SCENARIOS, Result, Scenario

#: Scenarios at once that need nothing of each other; most of their time is spent waiting.
AT_ONCE = 5

SEED = 7

_print_lock = threading.Lock()


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for, and return 1 if anything ended as it must not."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.write and (options.names or options.short):
        parser.error("--write is for a run of all scenarios")
    for number in (signal.SIGINT, signal.SIGTERM):  # what was started is stopped on the way out
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    chosen = [each for each in SCENARIOS if _is_chosen(each, options)]
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"AIRFLOW_HOME": folder}):
        for executor in (LOCAL, CELERY):
            scenarios = [each for each in chosen if each.executor == executor]
            if scenarios:
                try:
                    results += _run_on(executor, scenarios)
                except Unavailable as error:
                    print(f"{executor} is left out: {error}", file=sys.stderr)
    if options.write and len(results) == len(chosen):
        page.write(results)
    elif options.write:
        print(f"{page.PAGE.name} is not written: its table is for all scenarios", file=sys.stderr)
    wrong = [each.scenario.name for each in results if not each.is_right]
    print(f"{len(results)} scenarios: {len(results) - len(wrong)} as expected, {len(wrong)} not", *wrong, sep="\n  ")
    return 1 if wrong or not results else 0


def _run_on(executor: str, scenarios: Sequence[Scenario]) -> list[Result]:
    print(f"{executor}: starting Airflow for {len(scenarios)} scenarios", flush=True)
    needed = sum(each.patients for each in scenarios)
    began = time.monotonic()
    with Sandbox(cohort=2 * needed, seed=SEED, delay=24 * 3600, earlier_deliveries=False) as sandbox:
        accepted = (each.patient_id for each in cohort_scenarios(2 * needed, SEED) if each.files and not each.reason)
        patients = {each.dag_id: list(itertools.islice(accepted, each.patients)) for each in scenarios}
        files: dict[str, list[Dag]] = defaultdict(list)
        for each in scenarios:
            files[each.file].append((each.dag_id, patients[each.dag_id], each.options))
        dags = {name: dag_file(contents, sandbox.bucket) for name, contents in files.items()}
        with cluster(executor, sandbox, dags) as airflow:
            airflow.database.wait_until_parsed(patients, 300)
            print(f"{executor}: ready after {time.monotonic() - began:.0f} s", flush=True)
            runs = [
                (each, Run(each.dag_id, airflow, patients[each.dag_id], each.options, each.request_seconds))
                for each in scenarios
            ]
            return _run_all(airflow, runs)


def _run_all(airflow: Cluster, runs: Sequence[tuple[Scenario, Run]]) -> list[Result]:
    """Run each on its own, some at once, and then together those whose event happens to all."""
    results: dict[str, Result] = {}
    alone = [(scenario, run) for scenario, run in runs if not scenario.event.to_all]
    with _threads(AT_ONCE) as threads:
        for result in threads.map(lambda each: _run_one(*each), alone):
            results[result.scenario.name] = result
    for event in dict.fromkeys(scenario.event for scenario, _ in runs if scenario.event.to_all):
        together = [(scenario, run) for scenario, run in runs if scenario.event == event]
        gathering = _Gathering(len(together), lambda event=event: event.to_all(airflow))
        with _threads(len(together)) as threads:
            for result in threads.map(lambda each: _run_one(*each, gathering.arrive, gathering.leave), together):  # noqa: B023
                results[result.scenario.name] = result
    return [results[scenario.name] for scenario, _ in runs]


@contextlib.contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    threads = ThreadPoolExecutor(count)
    try:
        yield threads
    except BaseException:
        interrupted.set()
        raise
    finally:
        threads.shutdown(cancel_futures=True)


def _alone(scenario: Scenario, run: Run) -> None:
    run.check_point()
    scenario.event.happen(run)


class _Gathering:
    """
    Let something happen once, as soon as all are at their points.

    :param count: how many.
    :param happen: what happens, in the thread of the last one.
    """

    def __init__(self, count: int, happen: Callable[[], None]) -> None:
        self._awaited, self._happen = count, happen
        self._lock, self._over = threading.Lock(), threading.Event()
        self._runs: list[Run] = []
        self._failure: Exception | None = None

    def arrive(self, scenario: Scenario, run: Run) -> None:
        """Wait until all have arrived or left and it has happened."""
        with self._lock:
            self._runs.append(run)
        self._begin()
        wait_for("the others are at their points", self._over.is_set, seconds=300)
        if self._failure:
            raise RuntimeError(f"{scenario.event.text}: that failed") from self._failure

    def leave(self) -> None:
        """Don't wait for this one."""
        with self._lock:
            self._awaited -= 1
        self._begin()

    def _begin(self) -> None:
        with self._lock:
            if not self._runs or len(self._runs) < self._awaited or self._over.is_set():
                return
            try:
                for run in self._runs:
                    run.check_point()
                self._happen()
            except Exception as error:
                self._failure = error
            finally:
                self._over.set()


def _run_one(
    scenario: Scenario,
    run: Run,
    happen: Callable[[Scenario, Run], None] = _alone,
    leave: Callable[[], None] = lambda: None,
) -> Result:
    began = time.monotonic()
    outcome, error, is_there = None, "", False
    try:
        with scenario.point.bring(run):
            is_there = True
            happen(scenario, run)
        run.finish()
        outcome = run.outcome()
    except Exception:
        error = traceback.format_exc()
        if not is_there:
            leave()
    result = Result(scenario, outcome, time.monotonic() - began, error)
    if not interrupted.is_set():
        _show(result, run)
    return result


def _show(result: Result, run: Run) -> None:
    verdict = "ok" if result.is_right else "WRONG"
    lines = [f"{verdict:5} {result.scenario.name} ({result.seconds:.0f} s): {page.as_text(result.outcome)}"]
    if not result.is_right:
        lines.append(f"      expected: {page.expected_as_text(result.scenario.expected)}")
        lines.append(result.error)
        lines += [run.cluster.logs(run.dag_id, task_id) for task_id in ("refresh", "arrival")]
    with _print_lock:
        print("\n".join(lines), flush=True)


def _is_chosen(scenario: Scenario, options: argparse.Namespace) -> bool:
    if options.names:
        return scenario.name in options.names
    return scenario.short or not options.short


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="scenarios, all by default")
    parser.add_argument("--short", action="store_true", help="those alone that stand for the others")
    parser.add_argument("--write", action="store_true", help="write the table of docs/crashes.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
