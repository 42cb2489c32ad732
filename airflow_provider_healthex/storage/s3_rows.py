"""
Reads the rows of a listing in place of botocore, which takes many times as long for them, above all for their times.

It is botocore's own event that lets a client do so (``before-parse``), so only the clients that `read_rows_fast` was
called for are concerned. What is left of a page, and every page that is not read here, botocore parses as ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

from botocore.utils import parse_timestamp

#: A wildcard's handlers come before botocore's own, which parses all of a page to find an error in it.
_EVENT = "before-parse.*.ListObjectsV2"


def read_rows_fast(client: Any) -> Any:
    """Let a boto3 client read rows fast, and return it."""
    client.meta.events.register_first(_EVENT, _read)
    return client


def read_rows_in_thread(client: Any) -> Any:
    """Let an aiobotocore client read rows fast, in a thread beside its event loop, and return it."""

    async def read(**event: Any) -> None:
        await asyncio.to_thread(_read, **event)

    client.meta.events.register_first(_EVENT, read)
    return client


def _read(response_dict: dict[str, Any], customized_response_dict: MutableMapping[str, Any], **event: Any) -> None:
    if response_dict["status_code"] != 200:
        return
    try:
        root = ElementTree.fromstring(response_dict["body"])
        space = root.tag[: root.tag.find("}") + 1]
        rows = [_row(space, {field.tag: field.text for field in each}) for each in root.findall(f"{space}Contents")]
    except (ElementTree.ParseError, ValueError, OverflowError):
        return  # botocore says what is wrong
    if rows:
        root[:] = [each for each in root if each.tag != f"{space}Contents"]
        response_dict["body"] = ElementTree.tostring(root)
        customized_response_dict["Contents"] = rows


def _row(space: str, fields: dict[str, str | None]) -> dict[str, Any]:
    """Return the fields that anybody reads, as botocore would."""
    row: dict[str, Any] = {}
    for name in ("Key", "ETag"):
        if f"{space}{name}" in fields:
            row[name] = fields[f"{space}{name}"] or ""
    if f"{space}Size" in fields:
        row["Size"] = int(fields[f"{space}Size"] or "")
    if f"{space}LastModified" in fields:
        row["LastModified"] = _moment(fields[f"{space}LastModified"] or "")
    return row


def _moment(text: str) -> datetime:
    """Return a time as S3 writes it, or as botocore reads it: some stores write the forms of other headers."""
    with suppress(ValueError):
        moment = datetime.fromisoformat(text)
        if moment.tzinfo:
            return moment
    other: datetime = parse_timestamp(text)
    return other
