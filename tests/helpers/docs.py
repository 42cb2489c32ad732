"""The README and the pages of the documentation, as the tests of both read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = {
    page.name: page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}


class Block(NamedTuple):
    """A block of code in a page."""

    page: str
    number: int
    code: str


def blocks(language: str) -> list[Block]:
    """Return the blocks in a language, of all pages, without those that include a file."""
    found = []
    for name, page in PAGES.items():
        for number, match in enumerate(
            re.finditer(rf"^( *)```{language}\n(.*?)^\1```$", page.read_text(), re.M | re.S), 1
        ):
            code = match[2]
            if "--8<--" not in code:
                found.append(Block(name, number, code))
    return found


def block_id(block: Block) -> str:
    return f"{block.page}-{block.number}"
