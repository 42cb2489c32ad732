"""OpenLineage gets the arrived prefix and its counts, and no id."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest
from helpers.support import context_of

from airflow_provider_healthex.delivery import Arrival
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor
from airflow_provider_healthex.sensors.lineage import DeliveredDatasets

pytest.importorskip("airflow.providers.openlineage")

NOW = datetime.now(timezone.utc)
ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("airflow_database")
@pytest.mark.timeout(240)
def test_events_of_a_dag_name_the_prefix_and_the_counts(healthex_sandbox, tmp_path):
    events = tmp_path / "events.jsonl"
    # A process of its own: Airflow reads its listeners once.
    code = (
        "import sys\n"
        "from helpers.support import load_dags, run_dag\n"
        "from types import SimpleNamespace\n"
        "dag = getattr(load_dags('dags/lineage.py'), 'lineage')\n"
        "assert run_dag(dag, SimpleNamespace(bucket=sys.argv[1], delivery='s3')).state == 'success'\n"
    )
    environment = {
        **os.environ,
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(events), "append": True}),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    subprocess.run([sys.executable, "-c", code, healthex_sandbox.bucket], env=environment, check=True, timeout=200)

    told = [json.loads(line) for line in events.read_text().splitlines()]
    outputs = {
        event["job"]["name"].rpartition(".")[2]: event["outputs"]
        for event in told
        if event["eventType"] == "COMPLETE" and "." in event["job"]["name"]
    }
    assert outputs["refresh"] == []
    for task_id, patient_ids in {
        "one": [patients.IN_PROGRESS],
        "deferred": [patients.IN_PROGRESS],
        "cohort": [patients.IN_PROGRESS, patients.PARTIAL],
        "waiting_operator": [patients.SEVERAL_FILES],
    }.items():
        (data_set,) = outputs[task_id]
        files = [file for patient_id in patient_ids for file in healthex_sandbox.files(patient_id)]
        counts = data_set["outputFacets"]["outputStatistics"]
        assert (data_set["namespace"], data_set["name"]) == (f"s3://{healthex_sandbox.bucket}", "d/")
        assert (counts["fileCount"], counts["size"]) == (len(files), sum(file.size for file in files))
    shown = json.dumps([[event["inputs"], event["outputs"]] for event in told])
    assert not [each for each in (patients.IN_PROGRESS, patients.PARTIAL, patients.SEVERAL_FILES) if each in shown]


def delivered(bucket_key, **arguments):
    arguments = {"patient_id": "p-77", "since": NOW, "project_id": "pr-1", "external_id": "e-88", **arguments}
    sensor = HealthExDataArrivalSensor(task_id="arrival", bucket_name="deliveries", bucket_key=bucket_key, **arguments)
    sensor._prepare(context_of(sensor))
    return DeliveredDatasets.of(sensor._awaited, [Arrival(2, 40, NOW, NOW)])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("d/{projectId}/{healthexPatientId}/", "d/"),
        ("{healthexPatientId}/", "/"),
        ("d/study-{projectId}/{healthexPatientId}.json", "d/"),
        ("d/p-77/", "d/"),
        ("d/of-e-88/x/", "d/"),
        ("d/all/bundle.json", "d/all/bundle.json"),
    ],
)
def test_a_name_ends_before_the_first_variable_or_id(path, name):
    assert delivered(path) == DeliveredDatasets("s3://deliveries", (name,), 2, 40)


def test_a_name_ends_before_the_first_glob():
    assert delivered("d/all/2026-*/{healthexPatientId}/*", wildcard_match=True).names == ("d/all/",)


def test_several_paths_are_a_data_set_for_each_folder():
    assert delivered(["b/{healthexPatientId}/", "a/{healthexPatientId}/", "a/{externalId}"]).names == ("a/", "b/")


def test_nothing_is_reported_where_nothing_arrived():
    sensor = HealthExDataArrivalSensor(
        task_id="arrival", bucket_name="deliveries", bucket_key="d/{healthexPatientId}/", since=NOW, patient_id="p"
    )
    assert sensor.get_openlineage_facets_on_complete(None).outputs == []
