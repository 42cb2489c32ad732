"""A DAG with outputs as arguments: for a type checker, and on Airflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import support
from helpers.support import load_dags, run_dag, xcom

from airflow_provider_healthex.sandbox import patients

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_a_strict_type_checker_accepts_outputs_and_templates_as_arguments_and_the_example_dags():
    pytest.importorskip("mypy")
    pytest.importorskip("airflow.sdk", reason="Airflow 2.11 has no complete types")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "tests/dags/typed.py", "tests/dags/task_groups.py", "example_dags"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.usefixtures("airflow_database")
@pytest.mark.skipif(support.AIRFLOW == (3, 0), reason="Airflow 3.0 can't push the None of an optional key")
def test_one_key_of_the_output_is_an_argument_with_multiple_outputs(healthex_sandbox):
    run = run_dag(load_dags("dags/typed.py").typed, healthex_sandbox, skip_interactive=True)
    assert run.state == "success"
    assert xcom(run, "again")["patient_id"] == patients.IN_PROGRESS
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 2
