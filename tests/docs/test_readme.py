"""The README says what the code does."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

from airflow_provider_healthex.get_provider_info import CONN_FIELDS
from airflow_provider_healthex.operators.healthex import (
    HealthExListConsentedPatientsOperator,
    HealthExUpdateCohortOperator,
    HealthExUpdatePatientOperator,
)
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor, HealthExDataArrivalSensor
from airflow_provider_healthex.sensors.sftp import HealthExSftpCohortArrivalSensor, HealthExSftpDataArrivalSensor
from airflow_provider_healthex.triggers.healthex import HealthExDeliveryTrigger
from airflow_provider_healthex.triggers.sftp import HealthExSftpDeliveryTrigger

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_its_dag_is_the_example():
    example = (ROOT / "example_dags/refresh_patient.py").read_text()
    body = example.split('"""', 2)[2].strip()
    assert body in README


def test_its_task_group_is_the_example_of_a_few_patients():
    example = (ROOT / "example_dags/refresh_patients.py").read_text()
    group = example[example.index("    @task\n    def read(") : example.index("\n\nrefresh_patients()")]
    # At the top level, style asks for one more blank line.
    assert textwrap.dedent(group).strip() in README.replace("\n\n\n", "\n\n")


@pytest.mark.parametrize("block", re.findall(r"```json\n(.*?)```", README, re.DOTALL))
def test_its_json_is_json(block):
    json.loads(block)


@pytest.mark.parametrize(
    "operator",
    [
        HealthExUpdatePatientOperator,
        HealthExUpdateCohortOperator,
        HealthExListConsentedPatientsOperator,
        HealthExDataArrivalSensor,
        HealthExSftpCohortArrivalSensor,
        HealthExSftpDataArrivalSensor,
        HealthExCohortArrivalSensor,
        HealthExDeliveryTrigger,
        HealthExSftpDeliveryTrigger,
    ],
)
def test_it_names_every_parameter(operator):
    for name in inspect.signature(operator.__init__).parameters:
        if name not in ("self", "kwargs"):
            assert f"`{name}`" in README, name


def test_it_names_every_field_of_the_connection():
    for name in CONN_FIELDS:
        assert f"`{name}`" in README, name


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, re.MULTILINE))
def test_its_make_targets_exist(target):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_links_of_the_pages_lead_somewhere():
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_its_links_lead_somewhere():
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).strip().lower().replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (ROOT / target.partition("#")[0]).exists(), target


def test_no_committed_file_names_a_package_registry_or_a_machines_path():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile("|".join(["py" + r"pi\.org", "python" + "hosted", "/work" + "/main", "/ro" + "ot/"]))
    found = []
    for name in tracked.stdout.split():
        file = ROOT / name
        if file.is_file() and file.suffix not in (".png",) and forbidden.search(file.read_text(errors="replace")):
            found.append(name)
    assert found == []
