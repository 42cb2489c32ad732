"""What only an Airflow with its own processes shows: deferral, a killed task, a clear, and what is left on disk."""

from __future__ import annotations

import re

import pytest
from airflow import __version__ as airflow_version

from airflow_provider_healthex.sandbox import patients

pytestmark = pytest.mark.timeout(240)

HAS_STATE_STORE = tuple(int(part) for part in airflow_version.split(".")[:2]) >= (3, 3)


@pytest.fixture(scope="module")
def refreshed(real_airflow):
    """A run with each kind of token."""
    for run_id, conn_id in {"minted": "healthex_default", "stored": "healthex_stored"}.items():
        real_airflow.trigger("refresh_patient", run_id, healthex_conn_id=conn_id)
    return {run_id: real_airflow.wait(run_id) for run_id in ("minted", "stored")}


def test_the_example_runs_with_each_kind_of_token(real_airflow, refreshed):
    assert refreshed == {"minted": "success", "stored": "success"}
    assert real_airflow.result("minted", "arrival")["object_count"] == 1


def test_the_wait_was_the_triggerers(real_airflow, refreshed):
    log = "".join(
        file.read_text(errors="replace")
        for file in real_airflow.home.path.glob("logs/**/*arrival*/**/*.log*")
        if "refresh_patient" in str(file)
    )
    assert "Waiting for patient" in log
    assert "Arrived for patient" in log


def test_no_token_is_left_anywhere(real_airflow, refreshed):
    """In no log, rendered field, XCom, trigger row, serialized DAG or any other row: all files are searched."""
    secrets = [real_airflow.sandbox.api_secret.encode(), *(token.encode() for token in real_airflow.tokens)]
    # What a JWT of the sandbox begins with, so that minted ones are found too.
    start = re.escape(real_airflow.tokens[0].partition(".")[0].encode())
    sandbox_jwt = re.compile(start + rb"\.[A-Za-z0-9_-]{20,}")
    found = []
    files = [file for file in real_airflow.home.path.rglob("*") if file.is_file()]
    assert any(file.name == "airflow.db" for file in files)
    assert any("task_id=refresh" in str(file) for file in files)
    for file in files:
        content = file.read_bytes()
        found += [file for secret in secrets if secret in content]
        found += [file for _ in sandbox_jwt.finditer(content)]
    assert found == []


def test_a_task_killed_after_the_answer_asks_once_over_its_retries_and_a_clear_asks_again(real_airflow):
    sandbox = real_airflow.sandbox
    real_airflow.trigger("killed", "killed")
    assert real_airflow.wait("killed", seconds=120) == "success"
    first = real_airflow.result("killed", "refresh")
    assert sandbox.asked(patients.PARTIAL) == (1 if HAS_STATE_STORE else 2)
    assert real_airflow.query("select max(try_number) from task_instance where run_id = 'killed'") == [(2,)]

    before = sandbox.asked(patients.PARTIAL)
    real_airflow.clear("killed")
    assert real_airflow.wait("killed", not_before=3) == "success"
    assert sandbox.asked(patients.PARTIAL) == before + 1
    assert real_airflow.result("killed", "refresh")["requested_at"] > first["requested_at"]
