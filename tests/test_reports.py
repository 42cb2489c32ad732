"""What others see of a run: OpenLineage by its file transport, and metrics by StatsD; and no id in them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import support

from airflow_provider_healthex import metrics
from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
from airflow_provider_healthex.sandbox import Sandbox, patients

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parents[1]
AWAITED = {
    "one": [patients.IN_PROGRESS],
    "deferred": [patients.IN_PROGRESS],
    "cohort": [patients.IN_PROGRESS, patients.PARTIAL],
    "waiting_operator": [patients.SEVERAL_FILES],
}

# A process of its own: Airflow reads these settings once.
RUN = """
import sys
from types import SimpleNamespace
from helpers.support import load_dags, run_dag
run = run_dag(load_dags("dags/reported.py").reported, SimpleNamespace(bucket=sys.argv[1], delivery="s3"))
assert run.state == "success"
"""


@dataclass
class Reported:
    sandbox: Sandbox
    events: list[dict[str, Any]]
    metrics: list[tuple[str, str, str]]  # name, value, type


@pytest.fixture(scope="module")
def reported(airflow_database, tmp_path_factory):
    events = tmp_path_factory.mktemp("openlineage") / "events.jsonl"
    with Sandbox(delay=1.0) as sandbox, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        settings = {
            "OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(events), "append": True}),
            "METRICS__STATSD_ON": "true",
            "METRICS__STATSD_HOST": "127.0.0.1",
            "METRICS__STATSD_PORT": str(statsd.getsockname()[1]),
        }
        environment = {
            **os.environ,
            **sandbox.airflow_environment(),
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        }
        subprocess.run([sys.executable, "-c", RUN, sandbox.bucket], env=environment, check=True, timeout=200)
        statsd.setblocking(False)
        packets = []
        while True:
            try:
                packets.append(statsd.recv(65_536).decode())
            except BlockingIOError:
                break
        found = [
            re.fullmatch(r"airflow\.(healthex\.\S+):([\d.]+)\|(\w+)", line) for line in "\n".join(packets).split("\n")
        ]
        told = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
        yield Reported(sandbox, told, [match.groups() for match in found if match])


def test_openlineage_gets_the_prefix_and_the_counts(reported):
    pytest.importorskip("airflow.providers.openlineage")
    outputs = {
        event["job"]["name"].rpartition(".")[2]: event["outputs"]
        for event in reported.events
        if event["eventType"] == "COMPLETE" and "." in event["job"]["name"]
    }
    assert outputs["refresh"] == []
    for task_id, patient_ids in AWAITED.items():
        (data_set,) = outputs[task_id]
        files = [file for patient_id in patient_ids for file in reported.sandbox.files(patient_id)]
        counts = data_set["outputFacets"]["outputStatistics"]
        assert (data_set["namespace"], data_set["name"]) == (f"s3://{reported.sandbox.bucket}", "d/")
        assert (counts["fileCount"], counts["size"]) == (len(files), sum(file.size for file in files))
    shown = json.dumps([[event["inputs"], event["outputs"]] for event in reported.events])
    assert not [each for found in AWAITED.values() for each in found if each in shown]


def test_metrics_count_requests_pokes_and_lists_and_time_deliveries(reported):
    pytest.importorskip("statsd")
    counts: dict[str, float] = {}
    for name, value, kind in reported.metrics:
        counts[name] = counts.get(name, 0) + (float(value) if kind == "c" else 1)
    assert counts["healthex.requests.accepted"] == 3
    assert counts["healthex.requests.needs_patient_action"] == 1
    assert counts["healthex.requests.failed"] == 1
    times = [float(value) for name, value, _ in reported.metrics if name == "healthex.delivery_time"]
    assert len(times) == sum(map(len, AWAITED.values()))
    assert all(0 <= milliseconds < 60_000 for milliseconds in times)
    assert counts["healthex.pokes"] >= len(AWAITED)
    # Each poke is a LIST of one page, and the deferred sensor's worker lists once more what its triggerer saw.
    assert counts["healthex.lists"] >= counts["healthex.pokes"]


def test_every_metric_is_documented_and_no_other(reported):
    pytest.importorskip("statsd")
    documented = set(re.findall(r"^\| ``(\S+)`` \|", metrics.__doc__ or "", re.MULTILINE))
    sent = {name for name, _, _ in reported.metrics}
    assert sent <= documented
    assert documented - sent == {"healthex.requests.ambiguous"}


def test_an_ambiguous_request_is_counted_as_such(healthex_sandbox, monkeypatch):
    counted = []
    monkeypatch.setattr("airflow_provider_healthex.operators.healthex.count_request", counted.append)
    healthex_sandbox.faults.add("update", "cut_after")
    task = HealthExUpdatePatientOperator(
        task_id="refresh", patient_id=patients.IN_PROGRESS, on_ambiguous="assume_started"
    )
    task.execute(support.context_of(task))
    assert counted == ["ambiguous"]
