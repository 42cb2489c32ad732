"""The event-driven example; the end-to-end tests run it on an Airflow with a triggerer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from airflow import __version__ as airflow_version
from helpers.support import load_dags

HAS_WATCHERS = int(airflow_version.partition(".")[0]) >= 3


@pytest.fixture
def example(monkeypatch):
    for name, value in {"BUCKET": "bucket-of-the-test", "POKE_INTERVAL": "7", "QUIET_PERIOD": "8"}.items():
        monkeypatch.setenv(f"HEALTHEX_EXAMPLE_{name}", value)
    return load_dags("example_dags/on_delivery.py")


@pytest.mark.skipif(HAS_WATCHERS, reason="Airflow 3 has them")
def test_without_watchers_the_file_has_no_dag(example):
    assert not hasattr(example, "on_delivery")


@pytest.mark.skipif(not HAS_WATCHERS, reason="Airflow 2 has no AssetWatcher")
def test_the_watcher_polls_the_bucket_of_the_settings(example):
    (watcher,) = example.deliveries.watchers
    arguments = watcher.trigger["kwargs"] if isinstance(watcher.trigger, dict) else watcher.trigger.serialize()[1]
    assert arguments["bucket_name"] == "bucket-of-the-test"
    assert [arguments["poke_interval"], arguments["quiet_period"]] == [7, 8]


@pytest.mark.skipif(not HAS_WATCHERS, reason="Airflow 2 has no AssetWatcher")
def test_a_patient_of_several_events_is_processed_once(example, capsys):
    process = example.on_delivery().get_task("process").python_callable
    assert process(triggering_asset_events={"asset": [event(("b", 1), ("a", 1)), event(("b", 3))]}) == ["a", "b"]
    assert "Delivered: b, 3 object(s)" in capsys.readouterr().out


def event(*deliveries):
    payload = [
        {"project_id": "project", "patient_id": patient_id, "object_count": count, "last_modified": "2026-11-22T00:00"}
        for patient_id, count in deliveries
    ]
    return SimpleNamespace(extra={"payload": {"deliveries": payload}})
