"""The last listing of a wait: the objects of the patients who arrived, for the result and the manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import IO, Any

from airflow_provider_healthex.delivery import Arrival, StoredObject, Waiting
from airflow_provider_healthex.delivery.manifest import manifest_lines
from airflow_provider_healthex.sensors.awaited import Awaited

_ATTEMPTS, _PAUSE = 4, 15.0  # seconds between them


def collect(
    awaited: Awaited,
    arrived: Collection[int],
    lines: IO[bytes],
    run: Callable[[Any], Any],
    pause: float,
) -> tuple[dict[int, Arrival] | Waiting, dict[str, StoredObject]]:
    """
    List the fresh objects of those who arrived, and write a manifest's line for each.

    :param lines: gets the manifest, if the sensor writes one.
    :param run: makes a plan's requests.
    :param pause: the seconds between two attempts, 15 at most.
    :returns: the arrivals, or a `Waiting` where they can't be listed right now, and the objects that the result needs.
    """
    patients = awaited.wait.expectation.patients
    kept: dict[str, StoredObject] = {}

    def take(index: int, objects: Sequence[StoredObject]) -> None:
        if awaited.needs_objects:
            kept.update({one.key: one for one in objects})
        if awaited.manifest:
            written = manifest_lines(objects, uri=awaited.storage.uri, patient_id=patients[index].patient_id)
            lines.writelines(f"{line}\n".encode() for line in written)

    for attempt in range(_ATTEMPTS):
        time.sleep(min(pause, _PAUSE) if attempt else 0)
        kept.clear()
        lines.seek(0)
        lines.truncate()
        found = run(awaited.wait.collect(arrived, take))
        if not isinstance(found, Waiting):
            break
    return found, kept
