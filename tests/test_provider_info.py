"""The provider's metadata, as Airflow reads it before any import."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys

import pytest

from airflow_provider_healthex import __version__
from airflow_provider_healthex.get_provider_info import get_provider_info


def test_the_entry_point_leads_to_the_metadata():
    distribution = importlib.metadata.distribution("airflow-provider-healthex")
    (entry,) = distribution.entry_points.select(group="apache_airflow_provider")
    assert entry.name == "provider_info"
    assert entry.value == "airflow_provider_healthex.get_provider_info:get_provider_info"


def test_airflow_lists_the_provider_with_its_connection_and_link():
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert manager.providers["airflow-provider-healthex"].version == __version__
    assert manager.hooks["healthex"].hook_class_name == "airflow_provider_healthex.hooks.healthex.HealthExHook"
    assert "airflow_provider_healthex.links.healthex.HealthExProjectLink" in manager.extra_links_class_names


def test_the_metadata_and_the_errors_import_nothing():
    script = (
        "import sys; before = set(sys.modules); "
        "import airflow_provider_healthex, airflow_provider_healthex.get_provider_info as info; "
        "import airflow_provider_healthex.exceptions; info.get_provider_info(); "
        "print(sorted(name for name in set(sys.modules) - before if 'healthex' not in name))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("['__future__']", "[]")


def test_everything_named_can_be_imported():
    info = get_provider_info()
    for kind in ("operators", "sensors", "hooks", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                importlib.import_module(module)
    for path in (info["connection-types"][0]["hook-class-name"], *info["extra-links"]):
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


def test_the_metadata_fits_airflows_schema():
    import airflow

    jsonschema = pytest.importorskip("jsonschema")
    path = next(iter(airflow.__path__)) + "/provider_info.schema.json"
    with open(path) as file:
        jsonschema.validate(get_provider_info(), json.load(file))


def test_the_form_explains_every_field_and_hides_what_is_unused():
    (connection,) = get_provider_info()["connection-types"]
    assert set(connection["conn-fields"]) == {
        "project_id",
        "org_id",
        "connect_timeout",
        "read_timeout",
        "requests_per_second",
        "verify",
        "allow_http",
    }
    for field in connection["conn-fields"].values():
        assert field["label"]
        assert field["description"]
        assert "null" in field["schema"]["type"]
    assert connection["ui-field-behaviour"]["hidden-fields"] == ["schema", "port"]


def test_airflow_2_builds_the_same_form_from_the_hook():
    pytest.importorskip("flask_appbuilder")
    pytest.importorskip("wtforms")
    from airflow_provider_healthex.hooks.healthex import HealthExHook

    (connection,) = get_provider_info()["connection-types"]
    assert HealthExHook.get_connection_form_widgets().keys() == connection["conn-fields"].keys()
    assert HealthExHook.get_ui_field_behaviour()["relabeling"]["login"] == "API key"


def test_importing_the_modules_warns_of_nothing():
    modules = ["operators.healthex", "sensors.healthex", "sensors.sftp", "hooks.healthex", "triggers.healthex"]
    modules += ["triggers.sftp", "links.healthex"]
    script = "\n".join(f"import airflow_provider_healthex.{module}" for module in modules)
    arguments = [sys.executable, "-W", "error:::airflow_provider_healthex", "-c", script]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "airflow_provider_healthex" not in done.stderr
