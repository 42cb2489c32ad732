"""Waiting until the refreshed data has landed on an SFTP server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from posixpath import normpath
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import PokeReturnValue, conf

from airflow_provider_healthex.delivery import Waiting
from airflow_provider_healthex.delivery.hints import tree_hint
from airflow_provider_healthex.delivery.tree import CONFIRMATION, PARTIAL, TreeLook, Watch, look_at_tree
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.sensors.arrival import (
    DEFERRAL_GRACE,
    RULE_FIELDS,
    Rule,
    known,
    literals,
    refuse_pasted_templates,
)
from airflow_provider_healthex.sensors.patient import PatientArrivalSensor, PatientWait
from airflow_provider_healthex.sftp import LONGEST_LOOK, SftpServer
from airflow_provider_healthex.triggers.sftp import HealthExSftpDataArrivalTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_healthex.delivery.schedule import PokeSchedule

#: Where the task's state store keeps what earlier pokes of a wait showed.
STORE_KEY = "healthex_arrival"


class HealthExSftpDataArrivalSensor(PatientArrivalSensor):
    """
    Waits for a delivery newer than the request, on an SFTP server.

    It decides as :class:`~airflow_provider_healthex.sensors.healthex.HealthExDataArrivalSensor` does, and means as
    much: *a delivery since the request that has settled*. The result is the same. SFTP differs from S3 because it
    doesn't report the server's clock (docs/sftp.md):

    * A file counts if it was modified between the request and the sensor's first poke, or if it is newer than all
      that was there at that first poke, by the server's own clock; that clock may be hours off then.
    * Settled is what has not changed between the sensor's pokes for ``quiet_period`` seconds, or what was already so
      old, and ``clock_skew`` more, at its first poke.
    * Files named ``*.part``, ``*.filepart`` and ``*.tmp`` aren't counted, and an arrival is believed when a second
      listing, up to 5 s later, shows the same. Symbolic links below the path's fixed part aren't followed.

    Poke, reschedule and deferred mode decide alike. What the first poke showed is kept in the task's state store
    (Airflow 3.3 and later). Below, each poke in reschedule mode is a first one: there, the server's clock must be
    right to ``clock_skew`` seconds.

    :param path: where HealthEx delivers (templated): a string, or a list. May contain ``{orgId}``, ``{projectId}``,
        ``{healthexPatientId}``, ``{externalId}``, for HealthEx's delivery variables of the same name. Ends in ``/``:
        everything under it. With ``wildcard_match``: a glob over the whole path, whose ``*`` stands for ``/`` too.
        Otherwise: that file. Without a leading ``/`` it begins at the account's own folder.
    :param update: the operator's output, ``update=refresh.output`` (templated); gives patient, project,
        organization and ``requested_at``.
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
        HealthEx delivers without a new request when they have acted (official guide).
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
    :raises AirflowFailException: from the typed error, for what waiting can't mend: no connection, a login that was
        never let in, a host key that isn't the known one, a path whose first folder isn't there.
    :raises AirflowSensorTimeout: when nothing arrived in time.
    :raises AirflowTaskTimeout: when ``execution_timeout`` ended the wait.
    """

    trigger_class = HealthExSftpDataArrivalTrigger
    # For a poke that begins before the deadline and the last one, at a server that is slow or hangs.
    deferral_grace = DEFERRAL_GRACE + 2 * LONGEST_LOOK
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
        super().__init__(
            update=update,
            since=since,
            patient_id=patient_id,
            project_id=project_id,
            external_id=external_id,
            org_id=org_id,
            min_objects=min_objects,
            marker=marker,
            quiet_period=quiet_period,
            clock_skew=clock_skew,
            on_patient_action=on_patient_action,
            poke_interval=poke_interval,
            timeout=timeout,
            **kwargs,
        )
        refuse_pasted_templates(path)
        self.path: Any = path
        self.manifest_path: Any = manifest_path
        self.wildcard_match = wildcard_match
        self.deferrable = deferrable
        self.sftp_conn_id: Any = sftp_conn_id
        self._check_arguments()

    def _check_literals(self, rule: Rule) -> None:
        super()._check_literals(rule)
        paths = _paths(literals(self.path or [""]), rule.marker)
        manifest = ("manifest_path", _path("manifest_path", known(self.manifest_path, None)))
        self._check_paths(rule, paths, self._stand_in_values(), manifest)

    def poke(self, context: Context) -> PokeReturnValue:
        """Poke once; raises what :meth:`HealthExDataArrivalSensor.poke` does."""
        found = super().poke(context)
        if not found:
            self._memory.keep()
        return found

    def _prepare(self, context: Context, **wait: Any) -> PokeSchedule:
        schedule = super()._prepare(context, **wait)
        self._memory = _Memory(context, self._delivery, self.log)
        return schedule

    def _look(self, steps: Any) -> Any:
        try:
            self._memory.recall()
        except Exception as error:  # without it, this would be taken for the first poke
            return Waiting(f"Airflow's task state store did not answer ({type(error).__name__})")
        return super()._look(steps)

    def _conclude_event(self, event: Mapping[str, Any], context: Context) -> dict[str, Any] | None:
        self._memory.recalled = True  # the event knows more
        return super()._conclude_event(event, context)

    def _resolve(self) -> _TreeWait:
        subject = self._subject()
        paths = _paths([self.path] if isinstance(self.path, str) else self.path or [""], self._rule().marker)
        expectation = self._expectation(subject, paths)
        path = _path("manifest_path", self.manifest_path) if self.manifest_path else None
        manifest = self._manifest("manifest_path", path, subject, expectation.targets)
        pause = min(CONFIRMATION, self.poke_interval)
        return _TreeWait(SftpServer(self.sftp_conn_id), expectation, subject, manifest, pause)


@dataclass(frozen=True)
class _TreeWait(PatientWait):
    """One wait on an SFTP server; ``pause``: seconds between the two listings that must agree."""

    storage: SftpServer
    pause: float
    watch: Watch = field(default_factory=Watch)

    def address(self, path: str) -> str:
        """Return how messages show a path."""
        return f"{path!r} on sftp_conn_id={self.storage.sftp_conn_id!r}"

    def look(self) -> TreeLook:
        """Return the steps of one poke."""
        return look_at_tree(self.expectation, self.watch, pause=self.pause)

    def hint(self, unmatched: int) -> Any:
        """Return the steps that find out why nothing matches a path."""
        return tree_hint(self.expectation.targets[unmatched])

    def collect(self, event: Mapping[str, Any]) -> TreeLook:
        """Return the steps of one poke at what the triggerer saw."""
        # Quiet and confirmed as ever: since the triggerer's look, another file may have begun to come.
        self.go_on(event["watch"])
        return self.look()

    def go_on(self, seen: Mapping[str, Any]) -> None:
        """Go on with what an earlier process of this wait has seen, the first of which was let in then."""
        self.watch.recall(seen)
        self.storage.listed = self.watch.first_look is not None

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what its trigger needs of it."""
        return {**super().trigger_arguments(), "watch": self.watch.to_dict()}


class _Memory:
    """What a wait's pokes showed, over processes: in the task's state store, and nowhere below Airflow 3.3."""

    def __init__(self, context: Context, delivery: _TreeWait, log: Any) -> None:
        self._store: Any = context.get("task_state_store")
        self._delivery = delivery
        self._log = log
        self.recalled = self._store is None
        # A digest: paths name patients. Another request, path or setting is another wait.
        told = json.dumps(delivery.expectation.to_dict(), sort_keys=True)
        self._wait = hashlib.sha256(told.encode()).hexdigest()[:16]

    def recall(self) -> None:
        """Go on with what an earlier process of this wait has kept, once."""
        if self.recalled:
            return
        record = self._store.get(STORE_KEY)
        if isinstance(record, dict) and record.get("wait") == self._wait:
            self._delivery.go_on(record["watch"])
        self.recalled = True

    def keep(self) -> None:
        """Keep it for the next, if anything is known by now."""
        if self._store is None or not self.recalled:
            return
        try:
            self._store.set(STORE_KEY, {"wait": self._wait, "watch": self._delivery.watch.to_dict()})
        except Exception as error:
            self._log.warning(
                "Airflow's task state store did not take what this poke showed (%s): another process would start "
                "without it.",
                type(error).__name__,
            )


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
