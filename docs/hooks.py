"""Links from pages to files beside ``docs``: relative in the source, for a clone, and absolute on the site."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Make links to files beside ``docs`` absolute."""
    return re.sub(r"\]\(\.\./([^)]+)\)", rf"]({SOURCE}/blob/main/\1)", markdown)
