"""Waiting until the refreshed data has landed on an SFTP server: for one patient, or for a cohort with one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from posixpath import normpath
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import conf

from airflow_provider_healthex.arguments import one_of
from airflow_provider_healthex.delivery.sftp_listing import CONFIRMATION, PARTIAL
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.sensors.awaited import Awaited
from airflow_provider_healthex.sensors.base import DEFERRAL_GRACE, ArrivalSensor
from airflow_provider_healthex.sensors.checks import (
    existence_proves_nothing,
    known,
    literals,
    plain_seconds,
    refuse_pasted_templates,
)
from airflow_provider_healthex.sensors.request import (
    RULE_FIELDS,
    arrival_rule,
    check_cohort,
    check_patient,
    enough,
    one_path,
)
from airflow_provider_healthex.sensors.results import (
    COHORT_EVENT_KEYS,
    COHORT_REFUSED,
    ON_PATIENT_ACTION,
    PATIENT_EVENT_KEYS,
    await_cohort,
    await_patient,
    cohort_verdict,
)
from airflow_provider_healthex.storage.sftp import POKE_LIMIT, SftpServer
from airflow_provider_healthex.triggers.sftp import HealthExSftpDataArrivalTrigger

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow.providers.common.compat.sdk import XComArg

# For a poke that begins before the deadline and the last one, at a server that is slow or hangs.
_GRACE = DEFERRAL_GRACE + 2 * POKE_LIMIT


class HealthExSftpDataArrivalSensor(ArrivalSensor):
    """
    Waits for a delivery newer than the request, on an SFTP server.

    It decides as `HealthExDataArrivalSensor` does, and means the same: *a delivery since the request that has settled*.
    SFTP differs from S3 in what a listing shows (docs/sftp.md):

    * The server's clock is unknown. A file is fresh if it was modified between the request and the sensor's first poke,
      or if it is newer than every file that was there at the first poke, by the server's own clock.
    * Settled means unchanged between pokes for ``quiet_period`` seconds, or already so old, and ``clock_skew`` more,
      at the first poke.
    * Files named ``*.part``, ``*.filepart`` and ``*.tmp`` aren't counted. An arrival counts when a second listing, up
      to 5 s later, shows the same. Symbolic links below the literal part of the path aren't followed.

    Poke, reschedule and deferred mode decide alike. The first poke's result is kept in the task's state store
    (Airflow 3.3 and later). Below, each poke in reschedule mode is a first one: there, the server's clock must be right
    to ``clock_skew`` seconds.

    :param path: where HealthEx delivers (templated): a string, or a list. May contain ``{orgId}``, ``{projectId}``,
        ``{healthexPatientId}``, ``{externalId}``, for HealthEx's delivery variables of the same name. Ends in ``/``:
        everything under it. With ``wildcard_match``: a glob over the whole path, whose ``*`` stands for ``/`` too.
        Otherwise: that file. Without a leading ``/`` it begins at the account's own folder.
    :param update: the operator's output, ``update=refresh.output`` (templated): patient, project, organization
        and ``requested_at``.
    :param since: the moment of the request by hand, as for S3 (templated); before ``update``'s. One of the two is
        required.
    :param patient_id: HealthEx's id of the patient (templated); before ``update``'s, like the next two.
    :param project_id: the project (templated).
    :param org_id: the organization (templated).
    :param external_id: the id your side gave the patient (templated).
    :param min_objects: fresh files that are required, for a list of paths: for each (templated).
    :param marker: the name of the file that ends a delivery, or its ending where it begins with a dot; a fresh one
        is then required instead of ``quiet_period``, and isn't counted (templated). HealthEx documents none.
    :param quiet_period: seconds, or a timedelta, since the last change; 300 by default (templated).
    :param clock_skew: seconds, or a timedelta, by which the server's clock may be behind HealthEx's, or ahead of ours;
        60 by default (templated): what was modified up to so long before the request counts, if it was there at the
        first poke.
    :param on_patient_action: for an update that needs patient action: ``fail`` (not retried), ``skip``, or ``wait``:
        HealthEx delivers without a new request after the patient has acted (official guide).
    :param manifest_path: a file on the server to write a JSON line for each file to (templated); may contain the
        variables. The account needs the right to write it.
    :param wildcard_match: read ``path`` as a glob.
    :param deferrable: wait on the triggerer.
    :param sftp_conn_id: the connection of type SFTP (templated). The server's key is verified, by the connection's
        Extra ``host_key`` or the worker's and triggerer's ``~/.ssh/known_hosts``. It is used by the SFTP provider's
        asynchronous hook in every mode, so that what works on the worker works on the triggerer.
    :param poke_interval: seconds between two pokes, 60 by default.
    :param timeout: seconds until the task fails, 6 hours by default; there is one last poke then. ``soft_fail``
        turns this failure into a skip, and no other.
    :returns: as the S3 sensor: ``bucket`` (None), ``prefix``, ``uri`` (``sftp://host:port/…``), ``patient_id``,
        ``project_id``, ``since``, ``keys`` (paths as ``path`` writes them, sorted, at most 1,000),
        ``keys_truncated``, ``object_count``, ``total_bytes``, ``first_modified`` and ``last_modified`` (by the
        server's clock), ``manifest``.
    :raises HealthExConfigurationError: on construction, for an argument that can't be used.
    :raises AirflowFailException: from the typed error, for a permanent one: no connection, a login that was never
        accepted, another host key than the known one, a path whose first folder is missing.
    :raises AirflowSensorTimeout: when nothing arrived in time.
    :raises AirflowTaskTimeout: when ``execution_timeout`` ended the wait.
    """

    trigger_class = HealthExSftpDataArrivalTrigger
    deferral_grace = _GRACE
    event_keys = PATIENT_EVENT_KEYS
    template_fields: Sequence[str] = (
        "path",
        "update",
        "since",
        "patient_id",
        "project_id",
        "external_id",
        "org_id",
        "manifest_path",
        "sftp_conn_id",
        *RULE_FIELDS,
    )

    def __init__(
        self,
        *,
        path: str | list[str] | XComArg,
        update: Any = None,
        since: str | datetime | XComArg | None = None,
        patient_id: str | XComArg | None = None,
        project_id: str | XComArg | None = None,
        external_id: str | XComArg | None = None,
        org_id: str | XComArg | None = None,
        min_objects: int | str | XComArg = 1,
        marker: str | XComArg | None = None,
        quiet_period: timedelta | float | str | XComArg = 300,
        clock_skew: timedelta | float | str | XComArg = 60,
        on_patient_action: str = "fail",
        manifest_path: str | XComArg | None = None,
        wildcard_match: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        sftp_conn_id: str | XComArg = "sftp_default",
        poke_interval: timedelta | float = 60,
        timeout: timedelta | float = 6 * 60 * 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        existence_proves_nothing(self, update, since)
        self.path: Any = path
        self.update = update
        self.gets_update = update is not None
        self.since: Any = since
        self.patient_id: Any = patient_id
        self.project_id: Any = project_id
        self.external_id: Any = external_id
        self.org_id: Any = org_id
        self.min_objects = min_objects
        self.marker = marker
        self.quiet_period = plain_seconds(quiet_period)
        self.clock_skew = plain_seconds(clock_skew)
        self.on_patient_action = one_of("on_patient_action", on_patient_action, ON_PATIENT_ACTION)
        self.manifest_path: Any = manifest_path
        self.wildcard_match = wildcard_match
        self.deferrable = deferrable
        self.sftp_conn_id: Any = sftp_conn_id
        self._check_arguments()

    def _check_literals(self) -> None:
        check_patient(self, _literal_paths(self), _manifest(self))

    def _await(self, since: str | None) -> Awaited:
        return await_patient(self, _server(self), _rendered_paths(self), _manifest(self), since)


class HealthExSftpCohortArrivalSensor(ArrivalSensor):
    """
    Waits for a delivery newer than the request for every patient of a cohort, on an SFTP server, with one task.

    It decides about each patient as `HealthExSftpDataArrivalSensor` does, and has the result of
    `HealthExCohortArrivalSensor`, with ``bucket`` None. One poke takes one connection, and lists the folders of the
    patients who haven't arrived, several at a time. If the patient is behind a glob, it lists everything under the
    part of the path that all share.

    :param update: the cohort operator's output, ``update=refresh.output`` (templated).
    :param path: where HealthEx delivers (templated): one string, with ``{healthexPatientId}`` or ``{externalId}``,
        which comes from the update's entries; otherwise as in `HealthExSftpDataArrivalSensor`.
    :param min_fraction: the fraction of the patients in progress, 0 to 1, who must have arrived at the deadline (or
        from ``enough_after`` on) for the task to succeed (templated).
    :param enough_after: seconds or a timedelta from the start, after which ``min_fraction`` is enough; None: only at
        the deadline (templated).
    :param project_id: the project (templated); before ``update``'s, like the next.
    :param org_id: the organization (templated).
    :param min_objects: files that must have come for each patient (templated).
    :param marker: the name of the file that ends a delivery, or its ending where it starts with a dot (templated).
    :param quiet_period: seconds or a timedelta since a patient's last change, 300 by default (templated).
    :param clock_skew: seconds or a timedelta, 60 by default (templated); as in `HealthExSftpDataArrivalSensor`.
    :param manifest_path: a file on the server to write a JSON line for each file of those who arrived to (templated);
        may contain ``{orgId}`` and ``{projectId}``.
    :param wildcard_match: read ``path`` as a glob.
    :param deferrable: wait on the triggerer.
    :param sftp_conn_id: the connection of type SFTP (templated).
    :param poke_interval: seconds between two pokes, 120 by default.
    :param timeout: seconds until the deadline, 24 hours by default; there is one last poke then. ``soft_fail`` turns
        its failure into a skip, and no other.
    :returns: as `HealthExCohortArrivalSensor`.
    :raises HealthExConfigurationError: on construction, for an argument that can't be used.
    :raises AirflowFailException: from the typed error, for a permanent one.
    :raises AirflowSensorTimeout: where fewer than ``min_fraction`` arrived in time.
    """

    refused_arguments: ClassVar[Mapping[str, str]] = {**ArrivalSensor.refused_arguments, **COHORT_REFUSED}
    trigger_class = HealthExSftpDataArrivalTrigger
    deferral_grace = _GRACE
    event_keys = COHORT_EVENT_KEYS
    template_fields: Sequence[str] = (
        "path",
        "update",
        "project_id",
        "org_id",
        "manifest_path",
        "sftp_conn_id",
        "min_fraction",
        "enough_after",
        *RULE_FIELDS,
    )

    def __init__(
        self,
        *,
        update: Any,
        path: str | XComArg,
        min_fraction: float | str | XComArg = 1.0,
        enough_after: timedelta | float | str | XComArg | None = None,
        project_id: str | XComArg | None = None,
        org_id: str | XComArg | None = None,
        min_objects: int | str | XComArg = 1,
        marker: str | XComArg | None = None,
        quiet_period: timedelta | float | str | XComArg = 300,
        clock_skew: timedelta | float | str | XComArg = 60,
        manifest_path: str | XComArg | None = None,
        wildcard_match: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        sftp_conn_id: str | XComArg = "sftp_default",
        poke_interval: timedelta | float = 120,
        timeout: timedelta | float = 24 * 60 * 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        self.path: Any = path
        self.update = update
        self.gets_update = update is not None
        self.min_fraction = min_fraction
        self.enough_after = plain_seconds(enough_after)
        self.project_id: Any = project_id
        self.org_id: Any = org_id
        self.min_objects = min_objects
        self.marker = marker
        self.quiet_period = plain_seconds(quiet_period)
        self.clock_skew = plain_seconds(clock_skew)
        self.manifest_path: Any = manifest_path
        self.wildcard_match = wildcard_match
        self.deferrable = deferrable
        self.sftp_conn_id: Any = sftp_conn_id
        self._check_arguments()

    def _check_literals(self) -> None:
        paths = _literal_paths(self)
        if isinstance(self.path, (list, tuple)):
            one_path("path", self.path)
        check_cohort(self, paths, _manifest(self))

    def _min_fraction(self) -> tuple[float, float | None]:
        return enough(self)

    def _await(self, since: str | None) -> Awaited:
        return await_cohort(self, _server(self), one_path("path", _rendered_paths(self)), _manifest(self))

    def _timeout_verdict(self, arrived: Collection[int]) -> str:
        return cohort_verdict(self, self._awaited, arrived)


def _server(sensor: Any) -> SftpServer:
    return SftpServer(sensor.sftp_conn_id, confirmation=min(CONFIRMATION, sensor.poke_interval))


def _literal_paths(sensor: Any) -> list[str]:
    refuse_pasted_templates(sensor.path)
    return _paths(literals(sensor.path or [""]), arrival_rule(sensor, parsed=True).marker)


def _rendered_paths(sensor: Any) -> list[str]:
    paths = [sensor.path] if isinstance(sensor.path, str) else sensor.path or [""]
    return _paths(paths, arrival_rule(sensor).marker)


def _manifest(sensor: Any) -> tuple[str, Any]:
    path = sensor.manifest_path
    return "manifest_path", _path("manifest_path", path) if path and known(path, None) else path


def _paths(paths: Any, marker: str | None) -> list[str]:
    """Return the paths in their shortest spelling, refusing names of half-written files."""
    short = [_path("path", path) for path in (paths if isinstance(paths, (list, tuple)) else [paths])]
    for name, value in (*(("path", each) for each in short), ("marker", marker)):
        _refuse_partial(name, value)
    return short


def _refuse_partial(name: str, value: str | None) -> None:
    if isinstance(value, str) and value.lower().endswith(PARTIAL):
        raise HealthExConfigurationError(
            f"{name} is {value!r}, and files of such a name are taken for half-written ones: give the name they get."
        )


def _path(name: str, path: Any) -> str:
    """Return a path in its shortest spelling, refusing what SFTP would take literally."""
    if isinstance(path, str) and (path.startswith("~") or "://" in path):
        raise HealthExConfigurationError(
            f"{name} is {path!r}; give the path alone: from the root with a leading '/', from the account's own folder "
            "without. Host and port are the connection's."
        )
    if not isinstance(path, str) or not path:
        return path
    # One spelling for one file: a manifest that is spelled otherwise would be taken for delivered data.
    root, short = "/" if path.startswith("/") else "", normpath(path).lstrip("/")
    return f"{root}{short}/" if short and path.endswith("/") else root + short
