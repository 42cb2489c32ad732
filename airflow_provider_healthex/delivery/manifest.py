"""The manifest of a delivery: a JSON line for each object."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from airflow_provider_healthex.delivery.rule import StoredObject


def manifest_lines(
    objects: Iterable[StoredObject], *, uri: Callable[[str], str], patient_id: str | None
) -> Iterator[str]:
    """
    Return one JSON line for each object: ``uri``, ``size`` (bytes), ``etag``, ``last_modified``, ``patient_id``.

    :param uri: returns a key's URI.
    """
    for row in objects:
        yield json.dumps(
            {
                "uri": uri(row.key),
                "size": row.size,
                "etag": row.etag.strip('"'),
                "last_modified": row.last_modified.isoformat(),
                "patient_id": patient_id,
            }
        )
