"""The DAGs that the pages print, on Airflow, against the sandbox."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from helpers.docs import ROOT
from helpers.support import task_states, xcom

from airflow_provider_healthex.sandbox import Sandbox, patients

pytestmark = [pytest.mark.usefixtures("airflow_database"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def quick():
    with Sandbox(delay=0.2) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(quick, monkeypatch):
    quick.reset()
    for name, value in quick.airflow_environment().items():
        monkeypatch.setenv(name, value)
    return quick


def printed(name: str, sandbox: Sandbox, replaced: dict[str, str]):
    """Load a printed DAG with the sandbox's names, and shorter waits."""
    source = (ROOT / f"tests/docs/dags/{name}.py").read_text()
    replaced = {
        "s3://YOUR-BUCKET/": f"s3://{sandbox.bucket}/",
        "deferrable=True": "deferrable=True, poke_interval=0.5, quiet_period=1",
        "timeout=6 * 60 * 60": "timeout=60",
        'schedule="0 2 * * *"': "schedule=None",
        **replaced,
    }
    for old, new in replaced.items():
        source = source.replace(old, new)
    file = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]) / f"printed_{name}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shortest_dag_waits_for_the_new_delivery(sandbox):
    replaced = {"17d4513f-73e8": patients.IN_PROGRESS}
    run = printed("shortest", sandbox, replaced).refresh_one_patient().test()
    assert run.state == "success"
    assert xcom(run, "arrival")["object_count"] == 1


def test_the_nightly_dag_loads_what_arrives_although_one_needs_action_and_one_is_unknown(sandbox, capfd):
    ids = (patients.IN_PROGRESS, patients.CONSENT_EXPIRED, patients.SEVERAL_FILES, patients.UNKNOWN, patients.PARTIAL)
    examples = ("17d4513f-73e8", "0b6f8c2e-11aa", "5c1d9e70-42b3", "9a27e6f4-08cd", "e3b05d18-97f2")
    run = printed("nightly", sandbox, dict(zip(examples, ids, strict=True))).nightly().test()
    assert run.state == "success"
    assert task_states(run, "load") == ["success"]
    assert {each["patient_id"] for each in xcom(run, "arrival")["arrived"]} == set(ids[::2])
    assert f"Contact {patients.CONSENT_EXPIRED}: CONSENT_EXPIRED" in capfd.readouterr().out
