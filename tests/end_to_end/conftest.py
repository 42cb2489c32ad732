"""A whole Airflow, its scheduler, executor and triggerer in processes of their own, and a sandbox."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import openssh
from helpers.outreach import address_of
from helpers.running import HAS_APPROVAL, HAS_STATE_STORE, HAS_WATCHERS, VERSION, RunningAirflow, wait_for

from airflow_provider_healthex.sandbox import Sandbox, patients
from airflow_provider_healthex.sandbox.airflow import AirflowHome

#: Patients of the cohort that a killed task asks for.
COHORT = 500


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def real_airflow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAirflow]:
    path = tmp_path_factory.mktemp("standalone")
    delivered: list[str] = []

    def note(event: str, details: dict[str, Any]) -> None:
        if event == "delivered":
            delivered.append(details["patient_id"])

    # Longer than a slow machine takes from one task to the next, so that there is something to wait for.
    # Some of the cohort get nothing, and aren't the killed task's.
    with Sandbox(delay=12, cohort=COHORT + 20, latency=0.05, on_event=note) as sandbox:
        port = free_port()
        home = AirflowHome(
            path,
            copied(Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]), tmp_path_factory.mktemp("dags")),
            {
                "HEALTHEX_EXAMPLE_BUCKET": sandbox.bucket,
                "HEALTHEX_EXAMPLE_POKE_INTERVAL": "5",
                "HEALTHEX_EXAMPLE_QUIET_PERIOD": "1",
                "HEALTHEX_EXAMPLE_RETRY_DELAY": "1",
                "IMPATIENT_RESPONSE_TIMEOUT": "3",
                "AIRFLOW__API__PORT": str(port),
                "AIRFLOW__API__WORKERS": "1",  # 3.0 starts 4
                "AIRFLOW__API__HOST": "127.0.0.1",
                "AIRFLOW__API__BASE_URL": f"http://localhost:{port}",
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://localhost:{port}/execution/",
                "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "false",
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "true",
                "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
                "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
                "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "false",
                # How soon a dead worker and a dead triggerer are noticed: minutes by default.
                "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
                "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
                # How soon it is noticed that nobody has answered.
                "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
                "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
                "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
                "AIRFLOW__WEBSERVER__WEB_SERVER_PORT": str(port),
                "AIRFLOW__WEBSERVER__WEB_SERVER_HOST": "127.0.0.1",
            },
        )
        home.migrate()
        connections = sandbox.connections()
        stored = {**connections["healthex_default"], "login": "", "password": sandbox.token()}
        home.add_connections({**connections, "healthex_stored": stored, **sftp_connections(request)})
        with (
            (path / "standalone.log").open("w") as log,
            home.start("standalone", stdout=log, stderr=subprocess.STDOUT) as process,
        ):
            running = RunningAirflow(home, sandbox, process, [stored["password"]], delivered)
            with running.later:
                wait_until_ready(running)
                yield running


def sftp_connections(request: pytest.FixtureRequest) -> dict[str, Any]:
    if not openssh.HAS_SERVER:
        return {}
    return {"sftp_default": json.loads(request.getfixturevalue("openssh_server").connection())}


def copied(dags_folder: Path, copy: Path) -> Path:
    """Copy the DAGs, and one of them a second time, in haste."""
    shutil.copytree(dags_folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    approval = (copy / "example_dags/reconsent_with_approval.py").read_text()
    for name, other in {
        "reconsent_with_approval": "impatient",
        "HEALTHEX_EXAMPLE_RESPONSE": "IMPATIENT_RESPONSE",
    }.items():
        approval = approval.replace(name, other)
    (copy / "example_dags/impatient.py").write_text(approval)
    return copy


def wait_until_ready(running: RunningAirflow) -> None:
    """Wait until the DAGs are known, and the watcher of the example has begun."""
    expected = {file.stem for file in Path(running.home.environment["AIRFLOW__CORE__DAGS_FOLDER"]).glob("*/*.py")}
    assert {"refresh_patient", "on_delivery", "killed_cohort"} <= expected
    needed = {"refresh_patient", "killed", "killed_cohort", "cohort_waits", "reconsent_patient", "reconsent_cohort"}
    needed |= {"on_delivery"} if HAS_WATCHERS else set()
    needed |= {"reconsent_with_approval", "impatient"} if HAS_APPROVAL else set()
    wait_for(
        "Airflow has parsed the DAGs",
        lambda: needed <= {dag_id for (dag_id,) in running.query("select dag_id from serialized_dag")},
    )
    if VERSION >= (3, 0):
        wait_for("the API server answers", running.answers)
    if HAS_STATE_STORE:
        wait_for("the watcher has begun", lambda: running.query("select 1 from asset_state_store"), seconds=60)
    elif HAS_WATCHERS:
        wait_for("the watcher has begun", lambda: running.query("select 1 from trigger where triggerer_id > 0"))
        time.sleep(5)


@dataclass
class Begun:
    """The runs that were started before the first test, as most of the time is spent waiting."""

    #: Patients of the cohort whose update leads to no delivery.
    quiet: list[str]
    asked_for: list[str]
    #: How many the sandbox had been asked for when the worker was killed.
    asked_when_killed: int = 0


@pytest.fixture(scope="session")
def begun(real_airflow: RunningAirflow) -> Begun:
    """Start the runs that need nothing of each other; the worker of one is killed in the middle of its updates."""
    sandbox = real_airflow.sandbox
    scenarios = [sandbox.scenario(patient_id) for patient_id in sandbox.cohort]
    quiet = [each.patient_id for each in scenarios if not each.files and not each.error]
    begun = Begun(quiet, [each.patient_id for each in scenarios if each.patient_id not in quiet][:COHORT])
    assert len(begun.asked_for) == COHORT
    with ThreadPoolExecutor(1) as threads:  # one after the other: 2.11 takes one run of a DAG a second
        started = [
            threads.submit(real_airflow.trigger, "refresh_patient", run_id, healthex_conn_id=conn_id)
            for run_id, conn_id in {"minted": "healthex_default", "stored": "healthex_stored"}.items()
        ]
        started.append(threads.submit(real_airflow.trigger, "killed", "killed"))
        # A patient's mail is refused at first, with words that must not be repeated.
        refused = address_of(patients.AUTHENTICATION_EXPIRED)
        sandbox.faults.add("mail", 451, body=f"No room for {refused}", patient_id=refused)
        started += [
            threads.submit(
                real_airflow.trigger,
                dag_id,
                run_id,
                patient_id=patient_id,
                external_id=patients.external_id_of(patient_id),
            )
            for dag_id, run_id, patient_id in reconsents()
        ]
        cohort = [patients.SEVERAL_FILES, patients.CONSENT_NOT_FOUND, patients.CONSENT_REVOKED]
        started.append(threads.submit(real_airflow.trigger, "reconsent_cohort", "reconsent_cohort", patient_ids=cohort))
        if HAS_STATE_STORE:
            real_airflow.trigger("killed_cohort", "killed_cohort", patient_ids=begun.asked_for)
            begun.asked_when_killed = kill_in_the_middle(real_airflow, begun.asked_for)
        for each in started:
            each.result()
    # Later tests count deliveries: the last that is asked for is on its way.
    wait_for("the cohort's run has asked", lambda: sandbox.asked(patients.SEVERAL_FILES))
    return begun


def reconsents() -> list[tuple[str, str, str]]:
    """Return the runs for a patient who must act: of which DAG, the run's id, and the patient."""
    runs = [("reconsent_patient", "reconsent_patient", patients.AUTHENTICATION_EXPIRED)]
    if HAS_APPROVAL:
        runs += [
            ("reconsent_with_approval", "confirmed", patients.CONSENT_EXPIRED),
            ("reconsent_with_approval", "given_up", patients.CONSENT_REVOKED),
            ("impatient", "impatient", patients.NEW_REASON),
        ]
    return runs


def kill_in_the_middle(real_airflow: RunningAirflow, patient_ids: list[str]) -> int:
    def asked() -> int:
        counts = real_airflow.sandbox.asked_by_patient()
        return sum(counts[each] for each in patient_ids)

    wait_for("200 patients are asked for", lambda: asked() >= 200, every=0.02)
    # The worker first, or it would tell Airflow of its task's end.
    for process in json.loads((real_airflow.home.path / "killed_cohort.json").read_text()):
        os.kill(process, signal.SIGKILL)
    return asked()
