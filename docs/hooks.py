"""Files beside ``docs``: links to them are relative in a clone and absolute on the site; charts are copied."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Make links to files beside ``docs`` absolute."""
    return re.sub(r"\]\(\.\./([^)]+)\)", rf"]({SOURCE}/blob/main/\1)", markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the benchmarks' charts, which their results show as files beside them."""
    for chart in sorted((ROOT / "benchmarks").glob("*.svg")):
        files.append(File.generated(config, chart.name, abs_src_path=str(chart)))
    return files
