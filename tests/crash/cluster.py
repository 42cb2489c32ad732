"""The Airflow that is tormented: each part a process of its own, restarted when it ends, as a service manager would."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.airflow import AirflowHome
from testing import Unavailable
from testing.airflow import Database, airflow_home
from testing.postgres import Postgres, free_port, postgres
from tests.crash.proxy import Proxy

ROOT = Path(__file__).parents[2]

LOCAL, CELERY = "LocalExecutor", "CeleryExecutor"

#: Seconds after which Redis delivers a task again that no worker has acknowledged.
VISIBILITY_TIMEOUT = 10

#: Minutes by default: how soon it is noticed that a process is gone.
_PATIENCE = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "12",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "3",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MIN": "0.2",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "1",
    # The proxy holds calls for longer than the usual 5 s.
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "90",
    # A file is parsed again when it has changed, and only then.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "3600",
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "AIRFLOW__CORE__DAG_DISCOVERY_SAFE_MODE": "false",
    "AIRFLOW__CORE__PARALLELISM": "10",
    "AIRFLOW__API__WORKERS": "1",
}


class Part:
    """
    A part of Airflow, started again whenever it ends.

    :param command: of Airflow's command line.
    """

    def __init__(self, home: AirflowHome, name: str, *command: str) -> None:
        self._home, self.name, self._command = home, name, command
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._process: subprocess.Popen[str] | None = None
        self.starts = 0
        #: The sessions of its processes, by which those that outlive it are found.
        self.sessions: set[int] = set()

    @property
    def log(self) -> Path:
        """Its output."""
        return self._home.path / f"{self.name}.log"

    @contextlib.contextmanager
    def running(self) -> Iterator[Part]:
        """Keep it running until the end of the block, after which somebody has to kill it."""
        self._thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._thread.join()

    @property
    def pid(self) -> int | None:
        """The process itself, None while there is none."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def kill(self, *, with_children: bool) -> None:
        """``kill -9``; the tasks that it runs live on unless they are killed with it."""
        pid = self.pid
        if pid is None:
            raise RuntimeError(f"{self.name} does not run")
        kill_processes(pid, *(psutil.Process(pid).children(recursive=True) if with_children else ()))

    def _keep(self) -> None:
        with self.log.open("a") as log:
            while not self._ended.is_set():
                # Not by home.start(), which ends the whole group: what a killed part leaves behind lives on here.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "airflow", *self._command], env=self._home.environment, text=True,
                    stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                self.starts += 1
                self.sessions.add(self._process.pid)
                while self._process.poll() is None and not self._ended.wait(0.2):
                    pass
                self._ended.wait(1)


def kill_processes(*processes: int | psutil.Process) -> None:
    """``kill -9`` all at once, and wait until they are dead: stopped first, so that none reports another's end."""
    found = [each if isinstance(each, psutil.Process) else psutil.Process(each) for each in processes]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)
    wait_for("the processes are dead", lambda: all(map(_is_dead, found)), every=0.01)


def _is_dead(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass
class Cluster:
    """A running Airflow with its services, and how to reach into it."""

    executor: str
    sandbox: Sandbox
    home: AirflowHome
    postgres: Postgres
    database: Database
    proxy: Proxy
    parts: Mapping[str, Part]

    # --- Airflow's REST API and database

    def api(self, method: str, path: str, **body: Any) -> Any:
        """Call Airflow's REST API, which asks for no login here; for a while again, if it fails."""

        def answered() -> requests.Response | None:
            try:
                response = requests.request(
                    method, f"{self._url}/api/v2/{path}", json=body or None, timeout=30,
                    headers={"Authorization": f"Bearer {self._token}"},
                )  # fmt: skip
            except requests.RequestException:
                return None
            return response if response.status_code < 500 else None

        response = wait_for(f"{method} {path} is answered", answered, every=0.5)
        if response.status_code != 409:  # it was done by a call whose answer was lost
            response.raise_for_status()
        return response.json()

    def task(self, dag_id: str, task_id: str) -> Task:
        """Return what the database has of a task instance now."""
        rows = self.database.query(
            "select state, try_number, pid, max_tries, external_executor_id from task_instance "
            "where dag_id = %s and task_id = %s", dag_id, task_id,
        )  # fmt: skip
        return Task(*rows[0]) if rows else Task()

    def run_state(self, dag_id: str) -> str | None:
        """Return the state of the DAG's only run."""
        rows = self.database.query("select state from dag_run where dag_id = %s", dag_id)
        return rows[0][0] if rows else None

    def result(self, dag_id: str, task_id: str) -> Any:
        """Return a task's result, None if there is none."""
        rows = self.database.query(
            "select value from xcom where dag_id = %s and task_id = %s and key = 'return_value'", dag_id, task_id
        )
        return _decoded(rows[0][0]) if rows else None

    def logs(self, dag_id: str, task_id: str) -> str:
        """Return what a task's tries logged, without what each line repeats."""
        lines = []
        for file in sorted(self.home.path.glob(f"logs/dag_id={dag_id}/**/task_id={task_id}/*.log")):
            lines.append(f"      --- {task_id}, {file.stem}")
            for line in file.read_text(errors="replace").splitlines():
                if not any(each in line for each in _BORING):
                    lines.append(f"      {_short(line)}")
        return "\n".join(lines)

    @functools.cached_property
    def dag_of(self) -> Callable[[str], str | None]:
        """The row of a task instance, by the id that Airflow gives to each try."""

        @functools.cache
        def found(task_instance_id: str) -> str | None:
            rows = self.database.query("select dag_id from task_instance where id::text = %s", task_instance_id)
            return rows[0][0] if rows else None

        return found

    @functools.cached_property
    def _token(self) -> str:
        token: str = requests.get(f"{self._url}/auth/token", timeout=30).json()["access_token"]
        return token

    @property
    def _url(self) -> str:
        return self.home.environment["AIRFLOW__API__BASE_URL"]

    # --- what is done to it

    def process_of_task(self, dag_id: str, task_id: str) -> psutil.Process:
        """Return the process in which a task runs."""
        pid = self.task(dag_id, task_id).pid
        assert pid, f"{dag_id}.{task_id} has no process"
        return psutil.Process(pid)

    def kill_scheduler(self) -> None:
        """Kill the scheduler alone, and wait until another runs."""
        self._replace(["scheduler"], with_children=False)

    def kill_triggerer(self) -> None:
        """Kill the triggerer with the process that runs its triggers."""
        self._replace(["triggerer"], with_children=True)

    def kill_workers(self) -> None:
        """Kill all Celery workers with all that runs on them, as if their machines had lost power."""
        self._replace([name for name in self.parts if name.startswith("worker")], with_children=True)

    def stop_database(self, seconds: float) -> None:
        """Take the database away for a while."""
        self.postgres.stop()
        interrupted.wait(seconds)
        self.postgres.start()

    def _replace(self, names: list[str], *, with_children: bool) -> None:
        starts = {name: self.parts[name].starts for name in names}
        for name in names:
            self.parts[name].kill(with_children=with_children)
        wait_for(f"{names} start again", lambda: all(self.parts[each].starts > count for each, count in starts.items()))


@dataclass(frozen=True)
class Task:
    """A task instance, as the database has it."""

    state: str | None = None
    try_number: int = 0
    pid: int | None = None
    max_tries: int = 0
    executor_id: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more becomes of it by itself."""
        return self.state in ("success", "failed", "skipped", "upstream_failed")


#: Set to end all waiting, since the threads of a pool can't be killed.
interrupted = threading.Event()


def wait_for(what: str, found: Callable[[], Any], *, seconds: float = 90, every: float = 0.2) -> Any:
    """Wait until there is something, and return it; the database may be away meanwhile."""
    deadline = time.monotonic() + seconds
    while True:
        value, failure = None, None
        try:
            value = found()
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "psycopg2":
                raise
            failure = error
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s") from failure
        if interrupted.wait(every):
            raise InterruptedError(what)


@contextlib.contextmanager
def cluster(executor: str, sandbox: Sandbox, dags: Mapping[str, str]) -> Iterator[Cluster]:
    """
    Run an Airflow until the end of the block, with nothing left behind.

    :param executor: :data:`LOCAL` or :data:`CELERY`.
    :param dags: the DAG files' texts, by their names.
    :raises Unavailable: where a program or package for it isn't installed.
    """
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(_redis()) if executor == CELERY else ""
        database = stack.enter_context(postgres())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="healthex-crash-")))
        for name, text in dags.items():
            (folder / name).write_text(text)
        port = free_port()
        proxy = stack.enter_context(Proxy(port).running())
        variables = {
            **sandbox.airflow_environment(),
            **_PATIENCE,
            **(_celery(broker, database.address) if executor == CELERY else {}),
            "AIRFLOW__CORE__EXECUTOR": executor,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{proxy.port}/execution/",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
            "PYTHONPATH": str(ROOT),
        }
        home = stack.enter_context(airflow_home(database.address, folder, variables))
        parts = {name: Part(home, name, *command) for name, command in _commands(executor).items()}
        stack.callback(sweep, home, parts.values())  # after the parts, or they would start again
        for part in parts.values():
            stack.enter_context(part.running())
        running = Cluster(executor, sandbox, home, database, Database(database.address), proxy, parts)
        _wait_until_ready(running)
        yield running


def sweep(home: AirflowHome, parts: Iterable[Part] = ()) -> None:
    """
    Kill whatever still runs in this home: tasks are in process groups of their own, and outlive their workers.

    :param parts: of the cluster: a process that has set its title shows no environment any more, but its session.
    """
    sessions = {session for part in parts for session in part.sessions}
    while found := [each for each in psutil.process_iter() if _is_at_home(each, home) or _session(each) in sessions]:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, 5)


def _is_at_home(process: psutil.Process, home: AirflowHome) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("AIRFLOW_HOME") == str(home.path)
    return False


def _session(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error, OSError):
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    return None


def _commands(executor: str) -> dict[str, tuple[str, ...]]:
    commands: dict[str, tuple[str, ...]] = {
        "api-server": ("api-server",),
        "scheduler": ("scheduler", "--skip-serve-logs"),
        "dag-processor": ("dag-processor",),
        "triggerer": ("triggerer", "--skip-serve-logs"),
    }
    if executor == CELERY:
        for name in ("worker-1", "worker-2"):
            commands[name] = (
                "celery", "worker", "--celery-hostname", f"{name}@%h", "--concurrency", "5",
                "--skip-serve-logs", "--without-gossip", "--without-mingle",
            )  # fmt: skip
    return commands


def _celery(broker: str, address: str) -> dict[str, str]:
    return {
        "AIRFLOW__CELERY__BROKER_URL": broker,
        "AIRFLOW__CELERY__RESULT_BACKEND": address.replace("postgresql:", "db+postgresql+psycopg2:"),
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": str(VISIBILITY_TIMEOUT),
        # A worker restores what has become visible every 2 s, and not every 100.
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__UNACKED_RESTORE_INTERVAL": "2",
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__UNACKED_RESTORE_THROTTLE": "1",
    }


def _wait_until_ready(running: Cluster) -> None:
    def answers() -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{running._url}/api/v2/monitor/health", timeout=30).ok
        return False

    wait_for("the API server answers", answers, seconds=180)
    wait_for(
        "all jobs run",
        lambda: running.database.query(
            "select 1 from job where state = 'running' having count(distinct job_type) >= 3",
        ),
        seconds=120,
    )


@contextlib.contextmanager
def _redis() -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        raise Unavailable("CeleryExecutor needs Redis: apt-get install redis-server")
    for package in ("celery", "redis", "airflow.providers.celery"):
        if importlib.util.find_spec(package) is None:
            raise Unavailable("CeleryExecutor needs the packages of the group crash")
    port, password = free_port(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="healthex-redis-") as folder:
        settings = Path(folder, "redis.conf")
        settings.touch(mode=0o600)
        settings.write_text(
            f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\ndir {folder}\n'
        )
        server = subprocess.Popen([program, str(settings)], stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            yield f"redis://:{password}@127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(30)


_BORING = ("::group::", "::endgroup::", "DAG bundles loaded", "Filling up the DagBag", "Worker startup", "Pushing xcom")


def _short(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line[:300]
    errors = [f"{each.get('exc_type')}: {each.get('exc_value')}" for each in entry.get("error_detail") or ()]
    return " | ".join([f"{entry.get('timestamp', '')[11:23]} {entry.get('event')}", *errors])[:600]


def _decoded(value: Any) -> Any:
    while isinstance(value, str | bytes):
        value = json.loads(value)
    return value
