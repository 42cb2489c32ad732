"""When which file of a patient's record is put where: HealthEx's side of a delivery."""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Protocol

from airflow_provider_healthex.sandbox.fhir import bundle
from airflow_provider_healthex.sandbox.patients import File
from airflow_provider_healthex.sandbox.state import Patient, State

log = logging.getLogger(__name__)

DEFAULT_PATH = "d/{projectId}/{healthexPatientId}/"

_VARIABLE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class StoredFile:
    """
    A file as it lies where it was delivered to.

    :param size: in bytes.
    :param modified: UTC, by the clock of what it is stored on.
    """

    path: str
    size: int
    modified: datetime


class Destination(Protocol):
    """Where files are delivered to."""

    #: Whether it can make a file look older than it is.
    sets_times: bool

    def put(self, key: str, body: bytes, *, days_old: float = 0) -> None:
        """
        Write a file, over the one that is there.

        :param days_old: how long ago it seems to have been written, where the destination can do that.
        """

    def prepare(self) -> None:
        """Make what must be there before the first file."""

    def take_back(self) -> None:
        """Delete what was put."""

    def files(self, prefix: str) -> list[StoredFile]:
        """Return what is there whose path begins so, in the order of the paths."""
        ...

    def age(self, key: str, days: float) -> None:
        """
        Make a file older.

        :raises RuntimeError: where the destination can't.
        """


class DeliveryPath:
    """
    The path that the study has set up for its deliveries.

    :param template: with ``{orgId}``, ``{projectId}``, ``{healthexPatientId}``, ``{externalId}``. Ends in
        ``/``: a folder. Otherwise the one key that all files of a delivery are written to.
    """

    def __init__(self, template: str, org_id: str, project_id: str) -> None:
        self.template = template
        self._fixed = {"orgId": org_id, "projectId": project_id}
        known = {*self._fixed, "healthexPatientId", "externalId"}
        unknown = sorted(set(_VARIABLE.findall(template)) - known)
        if unknown or not template:
            raise ValueError(
                f"The delivery path {template!r} has unknown variables {unknown}: "
                f"use {', '.join(f'{{{name}}}' for name in sorted(known))}."
                if unknown
                else "The delivery path is empty: give one such as " + DEFAULT_PATH
            )

    def prefix(self, patient: Patient) -> str:
        """Return the patient's folder or key."""
        values = self._fixed | {
            "healthexPatientId": patient.patient_id,
            "externalId": patient.external_id or "no-external-id",
        }
        return _VARIABLE.sub(lambda found: values[found[1]], self.template)

    def key(self, patient: Patient, name: str) -> str:
        """Return the key of a file."""
        prefix = self.prefix(patient)
        return prefix + name if prefix.endswith("/") else prefix


class Scheduler:
    """Runs jobs later, one after the other, on a thread of its own."""

    def __init__(self) -> None:
        self._jobs: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._running = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="healthex-deliveries", daemon=True)
        self._thread.start()

    def after(self, seconds: float, job: Callable[[], object]) -> None:
        """Run a job that many seconds from now."""
        with self._changed:
            heapq.heappush(self._jobs, (time.monotonic() + seconds, next(self._order), job))
            self._changed.notify_all()

    def wait_until_idle(self, timeout: float) -> bool:
        """Return True as soon as nothing is left to run, False if there still is after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._running, timeout)

    def clear(self) -> None:
        """Forget all jobs. One that runs is finished on return."""
        with self._changed:
            self._jobs.clear()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._running)

    def stop(self) -> None:
        """Forget all jobs and end the thread."""
        self.clear()
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while job := self._next():
            try:
                job()
            except Exception:
                log.exception("The sandbox could not deliver.")
            with self._changed:
                self._running = False
                self._changed.notify_all()

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            while not self._stopped:
                wait = self._jobs[0][0] - time.monotonic() if self._jobs else None
                if wait is not None and wait <= 0:
                    self._running = True
                    return heapq.heappop(self._jobs)[2]
                self._changed.wait(wait)
        return None


class Deliveries:
    """
    Delivers patients' records.

    :param destination: where to.
    :param path: under which path.
    :param state: whose patients they are.
    :param delay: seconds from a request to its delivery.
    :param spread: seconds within which deliveries then come, each at a moment of its own.
    :param seed: decides which.
    """

    def __init__(
        self, destination: Destination, path: DeliveryPath, state: State, *, delay: float, spread: float, seed: int
    ) -> None:
        self._destination = destination
        self._path = path
        self._state = state
        self._delay = delay
        self._spread = spread
        self._seed = seed
        self.scheduler = Scheduler()

    def put_earlier(self, days_old: float) -> None:
        """Put what was delivered before the sandbox began."""
        for patient in list(self._state.patients.values()):
            if patient.version:
                for name in patient.scenario.file_names:
                    self._destination.put(*self._file(patient, name, patient.version), days_old=days_old)

    def schedule(self, patient: Patient) -> None:
        """Deliver a refresh when its scenario says."""
        files = patient.scenario.files
        if not files:
            return
        with self._state.lock:
            patient.version += 1
            current = patient.version
        for file in files:
            self._schedule_file(patient, file, max(current - 1, 1) if file.stale else current)

    def act(self, patient: Patient) -> None:
        """Let the patient go through the link again: data comes after the delay, and nobody asked for it."""
        with self._state.lock:
            patient.joined = patient.acted = True
        self._state.emit("acted", patient_id=patient.patient_id)
        self.scheduler.after(self._delay + self._lag(patient), lambda: self.deliver(patient))

    def deliver(self, patient: Patient) -> list[str]:
        """Deliver a refresh now, and return the keys."""
        with self._state.lock:
            patient.version += 1
            version = patient.version
        return [self._put(patient, name, version) for name in patient.scenario.file_names]

    def _schedule_file(self, patient: Patient, file: File, version: int) -> None:
        after = file.after * self._delay + self._lag(patient)
        self.scheduler.after(after, lambda: self._put(patient, file.name, version))

    def _lag(self, patient: Patient) -> float:
        # All files of a refresh have the same, so that their order stays.
        drawn = random.Random(f"{self._seed}/{patient.patient_id}/{patient.version}")
        return drawn.uniform(0, self._spread) if self._spread else 0

    def _file(self, patient: Patient, name: str, version: int) -> tuple[str, bytes]:
        names, brief = patient.scenario.file_names, patient.scenario.brief
        part = names.index(name) if name in names else 0
        content = bundle(patient.patient_id, version, part, len(names), brief=brief)
        return self._path.key(patient, name), json.dumps(content, indent=None if brief else 1).encode()

    def _put(self, patient: Patient, name: str, version: int) -> str:
        key, body = self._file(patient, name, version)
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
