"""Compares a path that was given with what lies in the store."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_healthex.check.layout import Explained, Layout, Rows, Template, explain
from airflow_provider_healthex.check.patterns import KnownIds
from airflow_provider_healthex.check.words import plural
from airflow_provider_healthex.delivery.template import literal_prefix, variables
from airflow_provider_healthex.exceptions import HealthExConfigurationError


@dataclass(frozen=True)
class PathCheck:
    """
    What a path that was given finds in the store.

    :param template: the path and what it explains; None where it can't be used at all.
    :param problem: what is wrong with it, or empty.
    :param advice: what to write instead, or empty.
    """

    template: Template | None
    problem: str = ""
    advice: str = ""


def check_path(path: str, rows: Rows, ids: KnownIds, layout: Layout, total: int) -> PathCheck:
    """
    Compare a path that was given with the store.

    :param path: without bucket; a glob is recognised by its characters.
    :param total: how many patients there are.
    """
    wildcard = any(character in path for character in "*?[")
    try:
        names = variables(path)
        literal_prefix(path, wildcard=wildcard)
    except HealthExConfigurationError as error:
        return PathCheck(None, str(error), "correct the path")
    if not {"healthexPatientId", "externalId"} & set(names):
        return PathCheck(
            None,
            f"{path!r} does not name the patient: any patient's delivery would count",
            _better(layout, total) or "put {healthexPatientId} or {externalId} into it",
        )
    explained = explain(path, wildcard, rows, ids)
    template = Template(
        path, wildcard, len(explained.rows), explained.objects, len(explained.strangers), explained.ambiguous
    )
    if explained.rows:
        return PathCheck(template)
    below = explain(f"{path}/", wildcard, rows, ids) if not path.endswith("/") else Explained()
    if below.rows:
        return PathCheck(
            template,
            f"{path!r} ends without '/' and means one key: {plural(below.matched, 'object')} lie below it",
            f"write {path + '/'!r}",
        )
    slashed = path.lstrip("/")
    if slashed != path and explain(slashed, wildcard, rows, ids).rows:
        return PathCheck(template, f"{path!r} begins with '/', and no key does", f"write {slashed!r}")
    if "externalId" in names and not ids.externals and "healthexPatientId" not in names:
        return PathCheck(
            template,
            f"{path!r} needs {{externalId}}, and there is no value for it: {plural(explained.matched, 'object')} match "
            f"with {plural(len(explained.strangers), 'value')} in its place",
            "give the study's own ids with --external-ids FILE, one a line",
        )
    return PathCheck(template, f"{path!r} matches 0 of {plural(total, 'patient')}", _better(layout, total))


def _better(layout: Layout, total: int) -> str:
    best = layout.best
    return f"{best.shown()!r} matches {best.patients}" + (f" of {total}" if total else "") if best else ""
