from __future__ import annotations

import pytest

from airflow_provider_healthex.check.cli import main
from airflow_provider_healthex.check.run import Check, Settings
from airflow_provider_healthex.sandbox import Sandbox, patients
from airflow_provider_healthex.sandbox.patients import SCENARIOS

EXTERNAL_IDS = frozenset(each.external_id for each in SCENARIOS.values())


@pytest.fixture(scope="session")
def sandboxes():
    """Running sandboxes, by their settings: starting one takes longer than resetting it."""
    running: dict[str, Sandbox] = {}
    yield running
    for sandbox in running.values():
        sandbox.stop()


@pytest.fixture
def laid_out(sandboxes, monkeypatch):
    """Return a sandbox that delivers in a layout, as if just started, and lead Airflow's connections to it."""

    def start(layout: str = "overwritten", **settings):
        settings = {"layout": layout, "delay": 0.5, **settings}
        sandbox = sandboxes.get(repr(settings))
        if sandbox:
            sandbox.reset()
        else:
            sandbox = sandboxes[repr(settings)] = Sandbox(**settings).start()
        for name, value in sandbox.airflow_environment().items():
            monkeypatch.setenv(name, value)
        return sandbox

    return start


@pytest.fixture
def checked():
    """Check a sandbox, steps 1 to 7."""

    def check(sandbox: Sandbox, **settings) -> Check:
        where = {"bucket": sandbox.bucket} if sandbox.delivery == "s3" else {"sftp_conn_id": "sftp_default"}
        check = Check(Settings(**{**where, **settings}))
        check.run()
        assert not sandbox.asked_by_patient(), "nothing may be billed"
        return check

    return check


@pytest.fixture
def command(capsys):
    """Run the command, and return its exit code, stdout and stderr."""

    def run(*arguments: str):
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


PATIENT = patients.IN_PROGRESS
