"""The link on a task's page."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import XCom

from airflow_provider_healthex.links.healthex import HealthExProjectLink


@pytest.mark.parametrize(
    ("result", "argument", "link"),
    [
        ({"project_id": "p-1"}, None, "https://app.healthex.io/#/projects/p-1/patient-management"),
        ({"project_id": "p-1"}, "p-2", "https://app.healthex.io/#/projects/p-1/patient-management"),
        (None, "p-2", "https://app.healthex.io/#/projects/p-2/patient-management"),
        ({"project_id": "a/../b"}, None, "https://app.healthex.io/#/projects/a%2F..%2Fb/patient-management"),
        (None, None, ""),
        (None, "{{ params.project_id }}", ""),
    ],
)
def test_the_link_opens_the_project_of_the_result_else_of_the_argument(monkeypatch, result, argument, link):
    monkeypatch.setattr(XCom, "get_value", lambda **key: result)
    assert HealthExProjectLink().get_link(SimpleNamespace(project_id=argument), ti_key=None) == link


def test_the_link_has_its_documented_name():
    assert HealthExProjectLink.name == "HealthEx project"
