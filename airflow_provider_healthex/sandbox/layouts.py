"""The names and folders that a delivery can have: HealthEx documents none of its own."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from airflow_provider_healthex.sandbox.patients import ONE_FILE, File

DEFAULT_PATH = "d/{projectId}/{healthexPatientId}/"


@dataclass(frozen=True)
class Layout:
    """
    How a delivery is laid out.

    :param summary: a line of text.
    :param path: where deliveries go.
    :param below: what stands between the path and a file's name, with ``{date}``, ``{retrieval}`` and
        ``{healthexPatientId}``.
    :param files: the files of each delivery; by default those of the patient's scenario.
    :param marker: the name among them of an empty file that ends the delivery.
    :param history: the number of earlier deliveries; above 1 where each has names of its own.
    """

    summary: str
    path: str = DEFAULT_PATH
    below: str = ""
    files: tuple[File, ...] = ()
    marker: str = ""
    history: int = 1

    def place(self, name: str, *, patient_id: str, requested: datetime, version: int) -> str:
        """Return what stands behind the path: folders and the file's name."""
        retrieval = uuid.uuid5(uuid.NAMESPACE_URL, f"{patient_id}/{version}/{requested:%Y%m%d}")
        below = self.below.replace("{date}", f"{requested:%Y-%m-%d}").replace("{retrieval}", str(retrieval))
        return below.replace("{healthexPatientId}", patient_id) + name


def _numbered(*after: float) -> tuple[File, ...]:
    return tuple(File(f"bundle-{number}.json", when) for number, when in enumerate(after, 1))


#: By name.
LAYOUTS = {
    "overwritten": Layout("one file, written over the last one (some patients have more)"),
    "several": Layout(
        "5 files within one delay, written over the last ones", files=_numbered(1.0, 1.25, 1.5, 1.75, 2.0)
    ),
    "dated": Layout("a folder a day below the patient's", below="{date}/", files=ONE_FILE, history=3),
    "by-day": Layout(
        "a folder a day, and the patients' below it",
        path="d/{projectId}/",
        below="{date}/{healthexPatientId}/",
        files=ONE_FILE,
        history=3,
    ),
    "retrieval": Layout(
        "a folder a retrieval below the patient's", below="{retrieval}/", files=_numbered(1.0, 1.5), history=3
    ),
    "marker": Layout(
        "3 files and then an empty _SUCCESS, written over the last ones",
        files=(*_numbered(1.0, 1.3, 1.6), File("_SUCCESS", 2.0)),
        marker="_SUCCESS",
    ),
    "in-name": Layout(
        "no folder a patient: the id begins the file's name",
        path="d/{projectId}/{healthexPatientId}_",
        below="{date}_",
        files=ONE_FILE,
        history=3,
    ),
    "external": Layout("the study's own ids in the path", path="d/{projectId}/{externalId}/", files=ONE_FILE),
}
