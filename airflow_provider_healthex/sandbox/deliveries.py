"""When each file of a patient's record is written, and under which path: HealthEx's side of a delivery."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from airflow_provider_healthex.sandbox.fhir import bundle
from airflow_provider_healthex.sandbox.layouts import DEFAULT_PATH, Layout
from airflow_provider_healthex.sandbox.loop import LoopThread
from airflow_provider_healthex.sandbox.patients import File
from airflow_provider_healthex.sandbox.state import Patient, State

if TYPE_CHECKING:
    from airflow_provider_healthex.sandbox.s3 import S3Destination
    from airflow_provider_healthex.sandbox.sftp import SftpDestination

log = logging.getLogger(__name__)

#: How old the earlier deliveries are, in days; where each has names of its own, also multiples of it.
EARLIER = 30

_VARIABLE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class StoredFile:
    """
    A delivered file.

    :param size: in bytes.
    :param modified: UTC, by the clock of its storage.
    """

    path: str
    size: int
    modified: datetime


class DeliveryPath:
    """
    The path that the study has set up for its deliveries.

    :param template: with ``{orgId}``, ``{projectId}``, ``{healthexPatientId}``, ``{externalId}``. Ends in
        ``/``: a folder. Otherwise the one key that all files of a delivery are written to.
    :param begins_names: whether it is rather what the files' names begin with.
    """

    def __init__(self, template: str, org_id: str, project_id: str, *, begins_names: bool = False) -> None:
        if not template:
            raise ValueError(f"path is empty: give one such as {DEFAULT_PATH}")
        self._template, self._begins_names = template, begins_names
        self._fixed = {"orgId": org_id, "projectId": project_id}
        known = {*self._fixed, "healthexPatientId", "externalId"}
        if unknown := sorted(set(_VARIABLE.findall(template)) - known):
            usable = ", ".join(f"{{{name}}}" for name in sorted(known))
            raise ValueError(f"path has the unknown variables {unknown} (got {template!r}): use {usable}.")

    def prefix(self, patient: Patient) -> str:
        """Return the patient's folder or key."""
        values = self._fixed | {
            "healthexPatientId": patient.patient_id,
            "externalId": patient.external_id or "no-external-id",
        }
        return _VARIABLE.sub(lambda found: values[found[1]], self._template)

    def key(self, patient: Patient, name: str) -> str:
        """Return the key of a file."""
        prefix = self.prefix(patient)
        return prefix + name if prefix.endswith("/") or self._begins_names else prefix


class Scheduler:
    """
    Runs jobs later, one after the other, on threads.

    :param loop: counts the seconds.
    """

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None

    def after(self, seconds: float, job: Callable[[], object]) -> None:
        """Run a job that many seconds from now."""
        with contextlib.suppress(RuntimeError):  # a request that outlives the loop
            self._loop.call(self._begin, seconds, job)

    def wait_until_idle(self, timeout: float) -> None:
        """Return as soon as no job is left; ``TimeoutError`` if one is after ``timeout`` seconds."""
        self._loop.run(self._idle(timeout))

    def clear(self) -> None:
        """Cancel all jobs. A running one is finished on return."""
        self._loop.run(self._cancel_all())

    def _begin(self, seconds: float, job: Callable[[], object]) -> None:
        task = asyncio.get_running_loop().create_task(self._run(seconds, job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, seconds: float, job: Callable[[], object]) -> None:
        await asyncio.sleep(seconds)
        async with self._turn:
            self._running = asyncio.current_task()
            try:
                await asyncio.to_thread(job)
            except Exception:
                log.exception("The sandbox could not deliver.")

    async def _idle(self, timeout: float) -> None:
        async with asyncio.timeout(timeout):
            while self._tasks:
                await asyncio.wait(self._tasks)

    async def _cancel_all(self) -> None:
        for task in self._tasks:
            if task is not self._running:
                task.cancel()
        async with self._turn:
            pass


class Deliveries:
    """
    Delivers patients' records.

    :param delay: seconds from a request to its delivery.
    :param spread: seconds within which deliveries then come, each at a moment of its own.
    :param seed: decides these moments.
    :param layout: names the files.
    """

    def __init__(
        self, scheduler: Scheduler, destination: S3Destination | SftpDestination, path: DeliveryPath, state: State,
        *, delay: float, spread: float, seed: int, layout: Layout,
    ) -> None:  # fmt: skip
        self.scheduler = scheduler
        self._destination, self._path, self._state = destination, path, state
        self._delay, self._spread, self._seed, self._layout = delay, spread, seed, layout

    def put_earlier(self) -> None:
        """Write the deliveries from before the sandbox's start."""
        for patient in list(self._state.patients.values()):
            for age in range(self._layout.history * EARLIER, 0, -EARLIER) if patient.version else ():
                requested = datetime.now(timezone.utc) - timedelta(days=age)
                for name, seconds in self._earlier_files(patient):
                    key, body = self._file(patient, name, patient.version, requested)
                    self._destination.put(key, body, days_old=age - seconds / 86_400)

    def schedule(self, patient: Patient) -> None:
        """Deliver a refresh when its scenario says."""
        files = self._files(patient)
        if not files:
            return
        version, requested = self._next_version(patient), datetime.now(timezone.utc)
        for file in files:
            self._schedule_file(patient, file, max(version - 1, 1) if file.stale else version, requested)

    def act(self, patient: Patient) -> None:
        """Let the patient go through the link again: data comes after the delay, without a request."""
        with self._state.lock:
            patient.joined = patient.acted = True
        self._state.emit("acted", patient_id=patient.patient_id)
        self.scheduler.after(self._delay + self._lag(patient), lambda: self.deliver(patient))

    def deliver(self, patient: Patient) -> list[str]:
        """Deliver a refresh now, and return the keys."""
        version, requested = self._next_version(patient), datetime.now(timezone.utc)
        return [self._put(patient, name, version, requested) for name in self._names(patient)]

    def _files(self, patient: Patient) -> tuple[File, ...]:
        """Return the files of a refresh; none where nothing has changed."""
        files = patient.scenario.files
        return self._layout.files or files if files else ()

    def _names(self, patient: Patient) -> tuple[str, ...]:
        """Return the names that a whole delivery has."""
        return tuple(file.name for file in self._layout.files) or patient.scenario.file_names

    def _earlier_files(self, patient: Patient) -> list[tuple[str, float]]:
        """Return the names of an earlier delivery, and how many seconds after the first each came."""
        seconds = {file.name: (file.after - 1) * self._delay for file in self._layout.files}
        return [(name, seconds.get(name, 0)) for name in self._names(patient)]

    def _next_version(self, patient: Patient) -> int:
        with self._state.lock:
            patient.version += 1
            return patient.version

    def _schedule_file(self, patient: Patient, file: File, version: int, requested: datetime) -> None:
        after = file.after * self._delay + self._lag(patient)
        self.scheduler.after(after, lambda: self._put(patient, file.name, version, requested))

    def _lag(self, patient: Patient) -> float:
        # All files of a refresh have the same, so that their order stays.
        drawn = random.Random(f"{self._seed}/{patient.patient_id}/{patient.version}")
        return drawn.uniform(0, self._spread) if self._spread else 0

    def _file(self, patient: Patient, name: str, version: int, requested: datetime) -> tuple[str, bytes]:
        names, brief = self._names(patient), patient.scenario.brief
        part = names.index(name) if name in names else 0
        content = bundle(patient.patient_id, version, part, len(names), brief=brief)
        body = b"" if name == self._layout.marker else json.dumps(content, indent=None if brief else 1).encode()
        place = self._layout.place(name, patient_id=patient.patient_id, requested=requested, version=version)
        return self._path.key(patient, place), body

    def _put(self, patient: Patient, name: str, version: int, requested: datetime) -> str:
        key, body = self._file(patient, name, version, requested)
        self._destination.put(key, body)
        self._state.emit(
            "delivered",
            patient_id=patient.patient_id,
            key=key,
            size=len(body),
            version=version,
            stale=version < patient.version,
            at=datetime.now(timezone.utc),
        )
        return key
