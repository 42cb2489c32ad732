"""The reports of an arrival to others, without ids: asset events, OpenLineage and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import Asset

from airflow_provider_healthex.delivery.template import literal_prefix
from airflow_provider_healthex.metrics import time_delivery

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_healthex.delivery import Arrival
    from airflow_provider_healthex.sensors.awaited import Awaited


def inform_outlets(sensor: Any, result: Mapping[str, Any], context: Context) -> None:
    """Put some of the result into the asset events of the task's outlets."""
    for outlet in sensor.outlets or ():
        if isinstance(outlet, Asset):
            context["outlet_events"][outlet].extra.update({key: result[key] for key in sensor.event_keys})


def time_deliveries(awaited: Awaited, arrivals: Mapping[int, Arrival]) -> None:
    """Record how long each patient's delivery has taken, by the times of its objects."""
    patients = awaited.wait.expectation.patients
    for index, arrival in arrivals.items():
        time_delivery(arrival.last_modified - patients[index].requested_at)


@dataclass(frozen=True)
class DeliveredDatasets:
    """
    The delivered data, as OpenLineage names it.

    S3 is named as the amazon provider and OpenLineage's naming spec name it: ``s3://{bucket}`` and the prefix; SFTP as
    the SFTP provider does: ``file://{host}:{port}`` and the absolute path, with the host of the connection.

    :param namespace: of all.
    :param names: the folder before the first path variable, glob or id of the patient of each path, so that no id is
        in it.
    :param file_count: fresh files of those who arrived.
    :param total_bytes: their size.
    """

    namespace: str
    names: tuple[str, ...]
    file_count: int
    total_bytes: int

    @classmethod
    def of(cls, awaited: Awaited, arrivals: Iterable[Arrival]) -> DeliveredDatasets:
        """Return what has arrived of what was awaited."""
        expectation, storage, found = awaited.wait.expectation, awaited.storage, list(arrivals)
        ids = [each for patient in expectation.patients for each in (patient.patient_id, patient.external_id) if each]
        prefixes = [_without_ids(path, ids, wildcard=expectation.wildcard) for path in expectation.paths]
        if storage.bucket:
            namespace, names = f"s3://{storage.bucket}", [prefix or "/" for prefix in prefixes]
        else:
            uris = [storage.uri(prefix).removeprefix("sftp://").partition("/") for prefix in prefixes]
            namespace, names = f"file://{uris[0][0]}", [f"/{path}" for _, _, path in uris]
        return cls(
            namespace,
            tuple(sorted(set(names))),
            sum(each.object_count for each in found),
            sum(each.total_bytes for each in found),
        )


def operator_lineage(delivered: DeliveredDatasets | None) -> Any:
    """Return the OpenLineage provider's form, with the counts where they are of one data set; without, if nothing."""
    from airflow.providers.common.compat.openlineage.facet import OutputDataset, OutputStatisticsOutputDatasetFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    if delivered is None:
        return OperatorLineage()
    facets: dict[str, Any] = {}
    if len(delivered.names) == 1:
        counts = OutputStatisticsOutputDatasetFacet(fileCount=delivered.file_count, size=delivered.total_bytes)
        facets["outputStatistics"] = counts
    return OperatorLineage(
        outputs=[OutputDataset(delivered.namespace, name, outputFacets=facets) for name in delivered.names]
    )


def _without_ids(path: str, ids: Iterable[str], *, wildcard: bool) -> str:
    prefix = literal_prefix(path, wildcard=wildcard)
    positions = [at for at in map(prefix.find, ids) if at >= 0]
    if not positions and prefix == path:
        return prefix
    return "".join(prefix[: min(positions, default=len(prefix))].rpartition("/")[:2])
