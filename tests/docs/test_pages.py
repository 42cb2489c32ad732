"""The pages say what the code does: their code runs, and what they name exists."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, dag, task, task_group
from helpers.docs import PAGES, ROOT, Block, block_id, blocks

from airflow_provider_healthex import exceptions, task_groups
from airflow_provider_healthex.client import PatientUpdate
from airflow_provider_healthex.get_provider_info import CONN_FIELDS
from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.operators import healthex as operators
from airflow_provider_healthex.operators import sftp as sftp_operators
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sensors import healthex as sensors
from airflow_provider_healthex.sensors import sftp as sftp_sensors
from airflow_provider_healthex.triggers import healthex as triggers
from airflow_provider_healthex.triggers import sftp as sftp_triggers

#: Files that run in the suite. A block that is a part of one needs no run of its own.
TESTED = [
    re.sub(r"\n\n+", "\n\n", file.read_text())
    for folder in ("example_dags", "tests/docs/dags", "tests/docs/project")
    for file in (ROOT / folder).glob("*.py")
]
PUBLIC = {
    name: each
    for module in (operators, sftp_operators, sensors, sftp_sensors, triggers, sftp_triggers)
    for name, each in vars(module).items()
    if re.fullmatch(r"HealthEx\w+(Operator|Sensor|Trigger)", name) and name != "HealthExOperator"
}
CLASSES = [each for each in PUBLIC.values() if not each.__name__.endswith("DataArrivalTrigger")]
MAKE_TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def is_tested(code: str) -> bool:
    lines = re.sub(r"\n\n+", "\n\n", textwrap.dedent(code)).strip()
    return any(lines in file or textwrap.indent(lines, "    ") in _without_blank_indents(file) for file in TESTED)


def _without_blank_indents(text: str) -> str:
    return re.sub(r"^ +$", "", text, flags=re.MULTILINE)


def as_read(name: str) -> str:
    """Return a page with the files it includes."""
    text = PAGES[name].read_text()
    return re.sub(r'--8<-- "([^":]+)[^"]*"', lambda found: (ROOT / found[1]).read_text(), text)


@pytest.mark.parametrize("block", blocks("python"), ids=block_id)
def test_its_python_runs(block: Block):
    """A block is a part of a tested file, or it makes its tasks in a DAG, from what the page has introduced."""
    if is_tested(block.code):
        return
    message = {"Body": json.dumps({"Records": [{"s3": {"object": {"key": "d/p1/patient/bundle.json"}}}]})}
    introduced: dict[str, Any] = {
        **PUBLIC,
        "HealthExHook": HealthExHook,
        "PatientUpdate": PatientUpdate,
        "healthex_refresh": task_groups.healthex_refresh,
        "dag": dag,
        "task": task,
        "task_group": task_group,
        "json": json,
        "message": message,
        "pytest": pytest,
        "reached": ["17d4513f-73e8"],
    }
    with DAG("page", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
        if "refresh" not in block.code.split("=")[0]:
            introduced["refresh"] = operators.HealthExUpdatePatientOperator(task_id="introduced", patient_id="17d4")
        exec(compile("from datetime import timedelta\n" + block.code, block_id(block), "exec"), introduced)


@pytest.mark.parametrize("block", blocks("json"), ids=block_id)
def test_its_json_is_json(block: Block):
    json.loads(block.code)


#: Commands that are not run here, and what runs them; also with more arguments.
RUN_ELSEWHERE = {
    "make demo": "tests/sandbox/test_demo.py",
    "make airflow": "tests/sandbox/test_airflow.py",
    "make test": "this is it",
    "pip install .": "tests/test_packaging.py, and .ci/build",
    "pip install '.[sftp]'": "make installs it",
    "pip install '.[sandbox]'": "make installs it",
    "healthex-sandbox serve": "tests/sandbox/test_cli.py; it has fixed ports, and doesn't end",
    "healthex-sandbox demo": "tests/sandbox/test_demo.py",
    "healthex-check --sftp-conn-id": "tests/check/test_store.py",
    "python3 -m venv .venv": "the Makefile",
    ".venv/bin/pip install uv": "the Makefile",
    ".venv/bin/uv pip install --python .venv/bin/python --constraint constraints.txt": "the Makefile",
    ".venv/bin/python -m pytest -n 5 --no-loadscope-reorder": "the Makefile",
}
COMMANDS = [
    (block, line)
    for block in blocks("bash")
    for line in (line.partition("  #")[0].strip() for line in block.code.splitlines())
    if line and not line.startswith("#")
]


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=lambda each: each if isinstance(each, str) else each.page)
def test_its_command_runs(block: Block, line: str, healthex_sandbox, monkeypatch, tmp_path):
    for page in line.split()[1:] if line.startswith("make ") else ():
        assert page in MAKE_TARGETS
    if any(line == known or line.startswith(f"{known} ") for known in RUN_ELSEWHERE):
        return
    if line.startswith("export AIRFLOW_CONN_"):
        name, value = line.removeprefix("export ").split("=", 1)
        monkeypatch.setenv(name, shlex.split(value)[0])
        assert HealthExHook(name.removeprefix("AIRFLOW_CONN_").lower()).resolve_project_id()
        return
    for name, connection in healthex_sandbox.airflow_environment().items():
        monkeypatch.setenv(name, connection)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__CORE__TEST_CONNECTION", "Enabled")
    program, *arguments = shlex.split(line.replace("YOUR-BUCKET", healthex_sandbox.bucket))
    done = subprocess.run(
        [Path(sys.executable).parent / program, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("each", CLASSES, ids=lambda each: each.__name__)
def test_the_reference_documents_every_argument_of(each):
    assert f".{each.__name__}\n" in PAGES["reference.md"].read_text()
    documented = set(re.findall(r":param (\w+):", inspect.getdoc(each) or ""))
    assert {
        name for name in inspect.signature(each.__init__).parameters if name not in ("self", "kwargs")
    } <= documented


def test_the_reference_documents_every_error():
    assert "::: airflow_provider_healthex.exceptions" in PAGES["reference.md"].read_text()
    errors = [each for each in vars(exceptions).values() if isinstance(each, type) and issubclass(each, Exception)]
    assert all(each.__doc__ for each in errors)


def test_the_reference_names_what_exists():
    for name in re.findall(r"^::: (\S+)", PAGES["reference.md"].read_text(), re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        __import__(name if module == "airflow_provider_healthex" else module)
        assert hasattr(sys.modules[module], attribute), name


def test_connect_names_every_field_of_the_connection():
    page = PAGES["connect.md"].read_text()
    assert [name for name in CONN_FIELDS if f"`{name}`" not in page] == []


def test_the_patients_are_those_of_the_sandbox():
    assert (ROOT / "docs/patients.txt").read_text().strip() == patients.table().strip()


def test_troubleshooting_has_the_messages_of_the_code():
    messages = [text for file in (ROOT / "airflow_provider_healthex").rglob("*.py") for text in texts(file)]
    missing = [
        fragment
        for line in PAGES["troubleshooting.md"].read_text().splitlines()
        if line.startswith("| `")
        for fragment in re.findall("`([^`]+)`", line.split(" | ")[0])
        if not is_message(fragment, messages)
    ]
    assert missing == []


#: What services, libraries and Airflow call their own errors.
THEIRS = ("AccessDenied", "NoSuchBucket", "InvalidAccessKeyId", "PermissionDenied", "HostKeyNotVerifiable")
THEIRS += ("SFTPPermissionDenied", "Executor", "reported that the task instance")


def is_message(fragment: str, messages: list[str]) -> bool:
    if fragment in THEIRS:
        return True
    known = "|".join(("S3|STS", r"HTTP \d+", r"\d+", "worker", *THEIRS))
    parts = [part.strip(" ()") for part in re.split(known, fragment)]
    return any(all(part in text for part in parts) for text in messages)


def texts(file: Path) -> list[str]:
    """Return the texts in a module, with a gap where a value is put in."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(each.value if isinstance(each, ast.Constant) else "\0" for each in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def anchors(name: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", as_read(name), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_its_links_lead_somewhere(name: str):
    page = PAGES[name]
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        assert not path or (page.parent / path).exists(), target
        if anchor and (not path or path.endswith(".md")):
            assert anchor in anchors(Path(path).name or name), target


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f": {page.name}" not in navigation]
    assert missing == []


@pytest.mark.parametrize("name", PAGES)
def test_its_paragraphs_are_short(name: str):
    text = re.sub(r"^( *)```.*?^\1```$", "", PAGES[name].read_text(), flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [
            line for line in paragraph.strip().splitlines() if not re.match(r"\s*(\||[-*] |\d+\. |#|<!--|:::|:)", line)
        ]
        if len(lines) == len(paragraph.strip().splitlines()):
            assert len(lines) <= 5, paragraph


def test_the_project_of_the_testing_page_passes(tmp_path):
    """As a user would: the two files, and a copy of the example beside them."""
    project = ROOT / "tests/docs/project"
    for file in project.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags/refresh_patient.py").write_text((ROOT / "example_dags/refresh_patient.py").read_text())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
