"""A cohort's request and its wait as one task group, once or for each of many chunks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from airflow.providers.common.compat.sdk import AirflowFailException, TaskGroup, task, task_group

from airflow_provider_healthex.operators.cohort import HealthExUpdateCohortOperator

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

    from airflow.providers.common.compat.sdk import XComArg

__all__ = ["RefreshOptions", "healthex_refresh"]


class RefreshOptions(TypedDict, total=False):
    """
    What `healthex_refresh` takes besides ``patient_ids``: arguments of its tasks, with their defaults.

    Types, units, and which of them are templated: see ``HealthExUpdateCohortOperator`` and
    ``HealthExCohortArrivalSensor``; with ``path``, ``HealthExSftpCohortArrivalSensor``.
    """

    group_id: str
    """The task group's id, ``healthex_refresh`` by default."""

    # Of both tasks
    project_id: str | XComArg | None

    # Of the operator
    skip_interactive: bool | str | XComArg | None
    max_concurrency: int
    max_failures: float
    on_ambiguous: str
    durable: bool
    healthex_conn_id: str | XComArg
    pool: str
    """Airflow's pool for the requests: it limits those of all workers together. The sensor takes none of it."""

    # Of the sensor
    bucket_key: str | XComArg
    bucket_name: str | XComArg | None
    aws_conn_id: str | None
    manifest_key: str | XComArg | None
    path: str | XComArg
    """In place of ``bucket_key``: wait on an SFTP server (extra ``sftp``)."""
    sftp_conn_id: str | XComArg
    manifest_path: str | XComArg | None
    org_id: str | XComArg | None
    min_fraction: float | str | XComArg
    enough_after: timedelta | float | str | XComArg | None
    min_objects: int | str | XComArg
    marker: str | XComArg | None
    quiet_period: timedelta | float | str | XComArg
    clock_skew: timedelta | float | str | XComArg
    wildcard_match: bool
    deferrable: bool
    poke_interval: timedelta | float
    timeout: timedelta | float


_OF_OPERATOR = {
    "project_id",
    "skip_interactive",
    "max_concurrency",
    "max_failures",
    "on_ambiguous",
    "durable",
    "healthex_conn_id",
    "pool",
}
_NOT_OF_SENSOR = {*_OF_OPERATOR, "group_id"} - {"project_id"}


class _HealthExRefresh:
    """
    Requests a cohort's updates and waits for the deliveries, in a task group.

    ``healthex_refresh(patient_ids=[…], bucket_key=…)`` is for one list of patients.
    ``healthex_refresh.partial(bucket_key=…).expand(patient_ids=chunks)`` is for each of several lists, such as
    ``HealthExListConsentedPatientsOperator(chunk_size=500).output``. At most 1,024 lists, by Airflow's
    ``max_map_length``. ``patient_ids`` and the options are those of the cohort operator and the cohort's sensor:
    `RefreshOptions`.

    Both return the output of the group's task ``results``: a list with the result of each chunk's sensor, in the
    chunks' order. A chunk without a result is left out, and so the list may be empty. ``results`` runs when all chunks
    have ended, whatever their state, so that the tasks after it need no trigger rule.

    A chunk's failure stays its own: the other chunks go on. A chunk is waited for also when its operator has failed,
    as accepted updates are billed and their deliveries come. The task ``watcher`` then fails the run, also if all
    tasks after ``results`` succeed; without a failure it is skipped. The ids of the tasks: ``refresh``, ``arrival``,
    ``results``, ``watcher``, in the group; mapped, the first two are in its inner group ``chunk``.

    :raises TypeError: for an option that doesn't exist.
    :raises HealthExConfigurationError: when the DAG is parsed, for an argument that can't be used.
    """

    def __call__(
        self, patient_ids: Sequence[str | Mapping[str, str]] | XComArg, **options: Unpack[RefreshOptions]
    ) -> Any:
        """Make the group for one list of patients, and return the list with its result."""
        with TaskGroup(_group_id(options), add_suffix_on_collision=True):
            return _collect(*_request_and_wait(patient_ids, options))

    def partial(self, **options: Unpack[RefreshOptions]) -> _Partial:
        """Take the options, for ``.expand(patient_ids=chunks)``."""
        _group_id(options)
        return _Partial(options)


class _Partial:
    """A `healthex_refresh` that has its options."""

    def __init__(self, options: RefreshOptions) -> None:
        self._options = options

    def expand(self, *, patient_ids: Sequence[Sequence[str | Mapping[str, str]]] | XComArg) -> Any:
        """Make the group for each of several lists of patients, and return the list of their results."""
        tasks: list[Any] = []

        @task_group
        def chunk(patient_ids: Any) -> Any:
            tasks.extend(_request_and_wait(patient_ids, self._options))
            return tasks[1].output

        with TaskGroup(_group_id(self._options), add_suffix_on_collision=True):
            chunk.expand(patient_ids=patient_ids)
            return _collect(*tasks)


healthex_refresh = _HealthExRefresh()


def _group_id(options: RefreshOptions) -> str:
    unknown = sorted(options.keys() - RefreshOptions.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"healthex_refresh has no option {unknown[0]!r}. It has: {', '.join(RefreshOptions.__annotations__)}"
        )
    return options.get("group_id", "healthex_refresh")


def _request_and_wait(patient_ids: Any, options: RefreshOptions) -> tuple[Any, Any]:
    given: dict[str, Any] = dict(options)
    refresh = HealthExUpdateCohortOperator(
        task_id="refresh",
        patient_ids=patient_ids,
        **{name: value for name, value in given.items() if name in _OF_OPERATOR},
    )
    arrival = _sensor_class(options)(
        task_id="arrival",
        update=refresh.output,
        # Also after an operator that failed: its result has accepted updates, which are billed.
        trigger_rule="none_skipped",
        **{name: value for name, value in given.items() if name not in _NOT_OF_SENSOR},
    )
    return refresh, arrival


def _sensor_class(options: RefreshOptions) -> Any:
    # Imported here: neither store needs what the other one does.
    if "path" in options:
        from airflow_provider_healthex.sensors.sftp import HealthExSftpCohortArrivalSensor

        return HealthExSftpCohortArrivalSensor
    from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor

    return HealthExCohortArrivalSensor


def _collect(refresh: Any, arrival: Any) -> Any:
    @task(trigger_rule="all_done")
    def results(arrivals: Any) -> list[Any]:
        """List the chunks' results. Airflow 3.3 passes a single one without a list, and 3.0 a mark for each missing."""
        found = arrivals if isinstance(arrivals, Sequence) else [arrivals]
        return [each for each in found if isinstance(each, dict)]

    # A run's state is that of its last tasks, and these run also after a failure. This one fails the run.
    @task(trigger_rule="one_failed", retries=0)
    def watcher() -> None:
        raise AirflowFailException("A task refresh or arrival of this group failed: its log says why")

    [refresh, arrival] >> watcher()
    return results(arrival.output)
