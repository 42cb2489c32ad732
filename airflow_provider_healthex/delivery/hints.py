"""
Why nothing at all lies under a path, compared with what is there: for the first poke of a wait.

Planned without I/O, like a poke itself. The texts show the path as its author wrote it, so no id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from airflow_provider_healthex.delivery.plan import Steps
from airflow_provider_healthex.delivery.s3_listing import Page, is_truncated
from airflow_provider_healthex.delivery.sftp_requests import Entry, EntryType, ListFolder, Stat
from airflow_provider_healthex.delivery.template import Kind, Target, literal_prefix

#: How many keys of a longer listing are counted.
_MAX_KEYS = 100

_SLASHES = re.compile(r"^/+|(?<=/)/+")


def s3_hint(target: Target, bucket: str) -> Steps[str | None]:
    """
    Return why no object matches a path, or None where that is as usual before a delivery; at most two small listings.

    :param target: the path; of a cohort, any patient's.
    :param bucket: the bucket's name.
    """
    written = _glob_sign(target) or _slashes(target)
    if written:
        return written
    if target.kind is Kind.KEY:
        page = yield {"Prefix": f"{target.prefix}/", "MaxKeys": _MAX_KEYS}
        if page.get("Contents"):
            lie = "lies" if len(page["Contents"]) == 1 and not is_truncated(page) else "lie"
            return f"No key is exactly {target.template!r}, but {_count(page)} {lie} below it: end the path with '/'"
    shared = _folder(literal_prefix(target.template, wildcard=target.kind is Kind.PATTERN))
    page = yield {"Prefix": shared, "MaxKeys": 1}
    if page.get("Contents"):
        return None
    if not shared:
        return f"Nothing lies in bucket {bucket!r}"
    return f"Nothing lies under {shared!r} in bucket {bucket!r}"


def sftp_hint(target: Target) -> Steps[str | None] | None:
    """Do what `s3_hint` does, for a path on an SFTP server; None where that would take a walk."""
    return _sftp_hint(target) if target.kind is Kind.KEY or _glob_sign(target) else None


def _sftp_hint(target: Target) -> Steps[str | None]:
    sign = _glob_sign(target)
    if sign:
        return sign
    entry: Entry | None = yield Stat(target.prefix)
    if entry is None or entry.type is not EntryType.FOLDER:
        return None
    entries: Sequence[Entry] = (yield ListFolder(f"{target.prefix}/")) or ()
    files = sum(1 for one in entries if one.type is EntryType.FILE)
    return f"{target.template!r} is a folder with {files:,} file{'' if files == 1 else 's'}: end the path with '/'"


def _glob_sign(target: Target) -> str | None:
    sign = next((sign for sign in "*?[" if sign in target.template), None)
    if target.kind is Kind.PATTERN or sign is None:
        return None
    return f"{sign!r} in the path {target.template!r} is taken literally: set wildcard_match=True to read it as a glob"


def _slashes(target: Target) -> str | None:
    short = _SLASHES.sub("", target.template)
    if short == target.template:
        return None
    return f"The path {target.template!r} has a slash too many: keys rarely begin with one or have two, write {short!r}"


def _count(page: Page) -> str:
    count = len(page["Contents"])
    return f"{'at least ' if is_truncated(page) else ''}{count:,} object{'' if count == 1 else 's'}"


def _folder(path: str) -> str:
    return path[: path.rfind("/") + 1]
