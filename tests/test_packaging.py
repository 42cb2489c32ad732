"""What lies beside the package says the same as the package."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from airflow_provider_healthex.get_provider_info import get_provider_info

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REGISTRY = yaml.safe_load((ROOT / ".airflow-registry.yaml").read_text())
KINDS = ("hooks", "operators", "sensors", "triggers", "other")


def test_the_registry_has_the_packages_name_and_addresses():
    info = get_provider_info()
    assert (REGISTRY["package-name"], REGISTRY["display-name"]) == (info["package-name"], info["name"])
    addresses = (PROJECT["urls"]["Documentation"], PROJECT["urls"]["Source"])
    assert (REGISTRY["docs-url"], REGISTRY["source-url"]) == addresses


@pytest.mark.parametrize("name", [each["module"] for kind in KINDS for each in REGISTRY[kind]])
def test_the_registry_names_what_exists(name: str):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


def test_every_address_begins_with_one_of_two():
    urls = PROJECT["urls"]
    assert all(url.startswith((urls["Documentation"], urls["Source"])) for url in urls.values())


def test_each_python_that_is_named_is_tested():
    named = set(re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"])))
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert named == {each["python"] for each in workflow["jobs"]["matrix"]["strategy"]["matrix"]["include"]}


def test_the_workflow_runs_every_entry_of_the_matrix():
    entries = re.findall(r"^run (\S+)", (ROOT / ".ci/matrix").read_text(), re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert [each["name"] for each in workflow["jobs"]["matrix"]["strategy"]["matrix"]["include"]] == entries


@pytest.mark.parametrize("tool", ["ruff", "codespell"])
def test_a_commit_is_checked_with_the_pinned_version_of(tool: str):
    pinned = re.search(rf"^{tool}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [each["rev"] for each in hooks if each["repo"].rsplit("/", 1)[-1].startswith(tool)] == [f"v{pinned}"]
