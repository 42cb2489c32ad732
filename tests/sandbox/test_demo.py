"""The demo's output, and how it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.models import DagBag

from airflow_provider_healthex.sandbox import cli, demo, patients
from airflow_provider_healthex.sandbox.demo import Progress

ROOT = Path(__file__).parent.parent.parent
DEMO = [sys.executable, "-m", "airflow_provider_healthex.sandbox.cli", "demo", "--delivery", "sftp"]


@pytest.mark.timeout(300)
def test_by_sftp_every_step_is_shown(tmp_path):
    home = ["--airflow-home", str(tmp_path / "airflow")]
    done = subprocess.run([*DEMO, *home], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [
        r"and an SFTP server at 127\.0\.0\.1:\d+\.",
        r"On the server already: d/project-demo/patient-in-progress/bundle\.json, [\d,]+ bytes, of ",
        "Running the DAG refresh_patient_sftp",
        "received the request",
        "delivered d/project-demo/patient-in-progress/bundle.json",
        "Airflow: Arrived for patient",
        r"Airflow: Read from SFTP: \{'Patient': 1",
        "Done: .* 1 request to HealthEx",
        r"example_dags/refresh_patient_sftp\.py",
        "make airflow DELIVERY=sftp",
    ]
    assert re.search(".*".join(steps), done.stdout, re.DOTALL), done.stdout
    assert re.search("Airflow: Waiting: .*; patient ", done.stdout), done.stdout  # where depends on the machine
    assert done.stderr == ""


@pytest.mark.timeout(300)
def test_a_patient_for_whom_nothing_is_delivered_ends_visibly(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(demo.QUICK, "HEALTHEX_EXAMPLE_TIMEOUT", "5")
    arguments = ["--patient", patients.NOTHING_CHANGED, "--airflow-home", str(tmp_path / "airflow")]
    assert cli.main(["demo", *arguments]) == 1
    assert "The run did not succeed: " in capfd.readouterr().out


@pytest.mark.parametrize("example", sorted(file.name for file in (ROOT / "example_dags").glob("*.py")))
def test_no_example_waits_for_more_than_minutes_on_the_sandbox(example, monkeypatch):
    for name, value in demo.QUICK.items():
        monkeypatch.setenv(name, value)
    bag = DagBag(ROOT / "example_dags" / example)
    assert not bag.import_errors
    for dag in bag.dags.values():
        for task in dag.tasks:
            if not getattr(task, "wait_for_arrival", True):
                continue
            limit = getattr(task, "timeout", None) or getattr(task, "response_timeout", None)
            seconds = limit.total_seconds() if isinstance(limit, timedelta) else limit
            assert seconds is None or seconds <= 600, (dag.dag_id, task.task_id)


def test_ctrl_c_ends_it_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(
        [*DEMO, "--airflow-home", str(tmp_path / "airflow")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        net = threading.Timer(90, process.kill)
        net.start()
        while "Preparing" not in (line := process.stdout.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "\nStopped; nothing is left running.\n"
        assert process.wait(20) == 130
        net.cancel()
    assert [entry.name for entry in (tmp_path / "tmp").iterdir() if entry.name.startswith("healthex-")] == []


@pytest.mark.parametrize("where", ["S3", "SFTP"])
def test_of_airflows_log_the_providers_lines_are_shown(capsys, where):
    story = Progress(patients.IN_PROGRESS)
    story.on_log_line("INFO - Task started")
    story.on_log_line("INFO - Waiting: nothing there; patient p, 6:00:00 until the timeout source=x")
    story.on_log_line("INFO - Waiting: nothing there; patient p, 5:59:59 until the timeout source=x")
    story.on_log_line("INFO - Arrived for patient p: 1 object, 2 bytes, modified 2026-11-22T20:28:17+00:00 source=x")
    story.on_log_line(f"INFO - Read from {where}: {{'Patient': 1}} source=x")
    shown = [line.partition("  ")[2] for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "Airflow: Waiting: nothing there; patient p, 6:00:00 until the timeout",
        "Airflow: Arrived for patient p: 1 object, 2 bytes, modified 2026-11-22T20:28:17+00:00",
        f"Airflow: Read from {where}: {{'Patient': 1}}",
    ]
    assert story.arrived


def test_outside_a_checkout_the_message_names_the_missing_dag(tmp_path, capsys):
    assert cli.main(["demo", "--delivery", "sftp", "--dags-folder", str(tmp_path)]) == 2
    assert "no refresh_patient_sftp.py" in capsys.readouterr().err
