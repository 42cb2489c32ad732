"""OpenLineage gets the arrived prefix and its counts, and no id."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from helpers.support import context_of

from airflow_provider_healthex.delivery import Arrival
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor
from airflow_provider_healthex.sensors.reports import DeliveredDatasets

pytest.importorskip("airflow.providers.openlineage")

NOW = datetime.now(timezone.utc)


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
