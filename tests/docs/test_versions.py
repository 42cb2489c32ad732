"""The page of supported versions shows what the matrix ran."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

from helpers.docs import ROOT

ENTRIES: dict[str, dict[str, Any]] = json.loads((ROOT / "docs" / "support.json").read_text())


def support() -> Any:
    loader = SourceFileLoader("support", str(ROOT / ".ci" / "support"))
    module = module_from_spec(spec_from_loader("support", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


def test_its_table_is_the_matrix_result():
    assert support().table(ENTRIES) in (ROOT / "docs" / "versions.md").read_text()


def test_a_failure_stands_out():
    entry = {**next(iter(ENTRIES.values())), "failed": 3}
    assert "| **3** |" in support().table({"airflow-3.0": entry})


def test_an_environment_that_was_not_run_stands_there_as_such():
    assert support().table({}).count("not run yet") == 8


def test_the_classifiers_name_the_pythons_that_were_run():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {each.rpartition(" ")[2] for each in project["classifiers"] if re.search(r":: 3\.\d+$", each)}
    assert named >= {one["python"].rpartition(".")[0] for one in ENTRIES.values()}
