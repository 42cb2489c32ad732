"""The example DAG for an SFTP server on Airflow, against the sandbox's own server and against OpenSSH."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from getpass import getuser

import pytest
from helpers.openssh import OpenSsh
from helpers.support import load_dags, run_dag, xcom

from airflow_provider_healthex.sandbox import Sandbox, patients
from airflow_provider_healthex.sandbox.sftp import SftpServer

EXAMPLE = "example_dags/refresh_patient_sftp.py"

pytestmark = pytest.mark.usefixtures("airflow_database")


@pytest.fixture
def dag(monkeypatch):
    monkeypatch.setenv("HEALTHEX_EXAMPLE_POKE_INTERVAL", "1")
    monkeypatch.setenv("HEALTHEX_EXAMPLE_QUIET_PERIOD", "2")
    return load_dags(EXAMPLE).refresh_patient_sftp()


@pytest.fixture
def on_its_own(monkeypatch) -> Iterator[Sandbox]:
    with Sandbox(delivery="sftp", delay=0.5) as sandbox:
        yield connected(sandbox, monkeypatch)


@pytest.fixture
def on_openssh(sftp: OpenSsh, monkeypatch) -> Iterator[Sandbox]:
    key = (sftp.folder / "client_key").read_text()
    server = SftpServer("127.0.0.1", sftp.port, getuser(), sftp.host_key, private_key=key)
    with Sandbox(delivery="sftp", sftp_server=server, delay=0.5) as sandbox:
        yield connected(sandbox, monkeypatch)


def connected(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    for name, value in sandbox.airflow_environment().items():
        monkeypatch.setenv(name, value)
    return sandbox


@pytest.mark.parametrize("sandbox", ["on_its_own", "on_openssh"])
def test_the_refreshed_files_are_read(dag, sandbox, request):
    sandbox = request.getfixturevalue(sandbox)
    run = run_dag(dag, sandbox, patient_id=patients.SEVERAL_FILES)
    assert run.state == "success"
    delivery = xcom(run, "arrival")
    assert delivery["keys"] == [file.path for file in sandbox.files(patients.SEVERAL_FILES)]
    assert delivery["object_count"] == 3
    assert delivery["since"] == xcom(run, "refresh")["requested_at"]
    assert delivery["first_modified"] >= delivery["since"]
    assert xcom(run, "read")["Patient"] == 3
    assert sandbox.asked(patients.SEVERAL_FILES) == 1


def test_a_patient_who_needs_to_act_fails_the_run_after_one_request(dag, on_its_own):
    run = run_dag(dag, on_its_own, patient_id=patients.CONSENT_EXPIRED)
    assert run.state == "failed"
    assert {ti.task_id: ti.state for ti in run.get_task_instances()}["arrival"] == "upstream_failed"
    assert on_its_own.asked(patients.CONSENT_EXPIRED) == 1


def test_without_the_extra_the_file_has_no_dag(monkeypatch):
    monkeypatch.setitem(sys.modules, "airflow.providers.sftp.hooks.sftp", None)
    assert not hasattr(load_dags(EXAMPLE), "refresh_patient_sftp")
