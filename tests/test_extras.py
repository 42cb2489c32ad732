"""A missing extra is an error that names it; the main classes need none."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.task_groups import healthex_refresh

NAMES_THE_EXTRA = r"^Waiting on an SFTP server needs asyncssh: pip install 'airflow-provider-healthex\[sftp\]'$"


@pytest.fixture
def without_sftp(monkeypatch):
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    for name in list(sys.modules):
        if name.startswith("airflow_provider_healthex") and name.endswith(".sftp"):
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("without_sftp")
@pytest.mark.parametrize("module", ["sensors.sftp", "triggers.sftp", "storage.sftp"])
def test_a_module_for_sftp_names_the_extra(module):
    with pytest.raises(ModuleNotFoundError, match=NAMES_THE_EXTRA):
        importlib.import_module(f"airflow_provider_healthex.{module}")


@pytest.mark.usefixtures("without_sftp")
def test_the_task_group_with_a_path_names_the_extra():
    with DAG("sftp", schedule=None), pytest.raises(ModuleNotFoundError, match=NAMES_THE_EXTRA):
        healthex_refresh(patient_ids=["p-1"], path="d/{healthexPatientId}/")


def test_hook_operator_and_s3_sensor_need_no_extra():
    # A process of its own: what the tests have imported already would hide what is missing.
    code = (
        "import sys\n"
        "for name in ('asyncssh', 'moto', 'aiosmtpd', 'airflow.providers.sftp.hooks'):\n"
        "    sys.modules[name] = None\n"
        "import airflow_provider_healthex.hooks.healthex, airflow_provider_healthex.operators.healthex\n"
        "import airflow_provider_healthex.sensors.healthex, airflow_provider_healthex.triggers.healthex\n"
        "import airflow_provider_healthex.task_groups\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
