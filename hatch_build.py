"""The package's description: the README with absolute links, since a package index shows it without the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def absolute_links(readme: str, urls: dict[str, str]) -> str:
    """Return the README with its relative links made absolute: pages on the docs site, other files in the source."""

    def absolute(match: re.Match[str]) -> str:
        path, anchor = match["path"], match["anchor"] or ""
        if page := re.fullmatch(r"docs/(?:index\.md|(.+)\.md|(.+))", path):
            address = urls["Documentation"] + (f"{page[1]}/" if page[1] else page[2] or "")
        else:
            address = f"{urls['Source']}/blob/main/{path}"
        return f"]({address}{anchor})"

    return re.sub(r"\]\((?!\w+:|#)(?P<path>[^)#]+)(?P<anchor>#[^)]*)?\)", absolute, readme)


class Readme(MetadataHookInterface):
    """Adds ``readme`` to the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the README as the package's description."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute_links(text, metadata["urls"])}
