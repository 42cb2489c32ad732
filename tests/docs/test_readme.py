"""The README is short, shows tested code alone, and leads to the pages."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
from helpers.docs import ROOT

README = (ROOT / "README.md").read_text()
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]


def test_it_can_be_read_in_ten_minutes():
    assert len(README.splitlines()) <= 150


def test_it_shows_the_demos_output():
    assert (ROOT / "docs/demo.txt").read_text().strip() in README


def test_the_demos_output_is_what_the_demo_prints():
    source = (ROOT / "airflow_provider_healthex/sandbox/demo.py").read_text()
    for text in ("The sandbox plays HealthEx at ", "sensor would pass at once, on that old file.", "was read, after "):
        assert text in README
        assert text in source


@pytest.fixture
def on_an_index(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    pytest.importorskip("hatchling")
    from hatch_build import absolute_links

    return absolute_links(README, URLS)


def test_on_a_package_index_every_link_is_absolute(on_an_index):
    targets = re.findall(r"\]\(([^)]+)\)", on_an_index)
    assert targets
    assert [target for target in targets if not target.startswith((URLS["Documentation"], URLS["Source"]))] == []


def test_on_a_package_index_a_page_is_the_documentations(on_an_index):
    assert f"({URLS['Documentation']}connect/)" in on_an_index
    assert f"({URLS['Documentation']}images/overview.svg)" in on_an_index
    assert f"({URLS['Source']}/blob/main/CHANGELOG.md)" in on_an_index


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
