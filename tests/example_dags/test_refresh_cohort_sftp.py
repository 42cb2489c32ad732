"""The example of a cohort on an SFTP server, on Airflow, against the sandbox."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from helpers.support import load_dags, run_dag, xcom

from airflow_provider_healthex.sandbox import Sandbox

pytest.importorskip("airflow.providers.sftp")

pytestmark = [pytest.mark.usefixtures("airflow_database"), pytest.mark.timeout(120)]

EXAMPLE = "example_dags/refresh_cohort_sftp.py"


@pytest.fixture
def healthex_sandbox(monkeypatch) -> Iterator[Sandbox]:
    with Sandbox(delivery="sftp", delay=1) as sandbox:
        for name, value in sandbox.airflow_environment().items():
            monkeypatch.setenv(name, value)
        yield sandbox


def test_the_consented_patients_whose_data_came_are_reported(healthex_sandbox, monkeypatch):
    for name, seconds in (("POKE_INTERVAL", 1), ("QUIET_PERIOD", 0), ("TIMEOUT", 12)):
        monkeypatch.setenv(f"HEALTHEX_EXAMPLE_{name}", str(seconds))

    run = run_dag(load_dags(EXAMPLE).refresh_cohort_sftp(), healthex_sandbox)

    assert run.state == "success"
    in_progress = {each["patient_id"] for each in xcom(run, "refresh")["in_progress"]}
    coming = {patient for patient in in_progress if healthex_sandbox.scenario(patient).files}
    assert set(xcom(run, "report")) == coming
    assert len(coming) > 2


def test_without_the_extra_the_file_has_no_dag(monkeypatch):
    monkeypatch.setitem(sys.modules, "airflow_provider_healthex.sensors.sftp", None)
    assert not hasattr(load_dags(EXAMPLE), "refresh_cohort_sftp")
