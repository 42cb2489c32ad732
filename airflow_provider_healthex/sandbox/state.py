"""The sandbox's memory: its patients, and the requests for each of them."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from airflow_provider_healthex.sandbox.patients import SCENARIOS, Scenario

log = logging.getLogger(__name__)

Listener = Callable[[str, dict[str, Any]], None]


@dataclass
class Patient:
    """
    A patient of the project.

    :param joined: whether the patient has signed in and consented; before, HealthEx has no patient id.
    :param acted: whether the patient went through the link again.
    :param version: of the newest refresh, 0 before the first.
    """

    patient_id: str
    scenario: Scenario
    external_id: str | None = None
    reference_id: str | None = None
    email: str | None = None
    joined: bool = True
    acted: bool = False
    version: int = 0

    @property
    def reason(self) -> str | None:
        """The reason why patient action is needed, None once the patient has acted."""
        return None if self.acted else self.scenario.reason


@dataclass
class UpdateRequest:
    """
    One ``$updateData`` that arrived, also if it was then refused or cut off.

    :param at: UTC.
    :param status: of the answer, None before it.
    :param accepted: whether a retrieval was started, which HealthEx would bill.
    """

    project_id: str
    patient_id: str
    at: datetime
    status: int | None = None
    accepted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"at": self.at.isoformat(), "status": self.status, "accepted": self.accepted}


@dataclass
class State:
    """
    Everything that a reset forgets.

    :param listener: called with each event's name and details, from the thread it happens in.
    :param cohort: patients besides the named ones.
    :param earlier_deliveries: whether anything was delivered before.
    """

    listener: Listener | None = None
    cohort: Sequence[Scenario] = ()
    earlier_deliveries: bool = True
    lock: threading.RLock = field(default_factory=threading.RLock)
    patients: dict[str, Patient] = field(default_factory=dict)
    updates: dict[str, list[UpdateRequest]] = field(default_factory=dict)  # by patient
    calls: Counter[str] = field(default_factory=Counter)  # by endpoint
    #: Set when this round is over (reset or stop): slow answers of the round before are dropped.
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all requests; the patients are those of the scenarios again."""
        with self.lock:
            self.over.set()
            self.over = threading.Event()
            self.updates = defaultdict(list)
            self.calls = Counter()
            # Unknown, forbidden and paused are here too: their scenarios answer.
            self.patients = {
                each.patient_id: Patient(
                    each.patient_id,
                    each,
                    each.external_id,
                    version=int(each.delivered_before and self.earlier_deliveries),
                )
                for each in (*SCENARIOS.values(), *self.cohort)
            }

    def emit(self, event: str, **details: Any) -> None:
        """Call the listener; an exception of its own changes nothing."""
        if self.listener is None:
            return
        try:
            self.listener(event, details)
        except Exception:
            log.exception("The sandbox's listener failed on %r.", event)

    def patient(self, patient_id: str) -> Patient | None:
        """Return the joined patient with that id, or None."""
        found = self.patients.get(patient_id)
        return found if found and found.joined else None

    def by_external_id(self, external_id: str) -> Patient | None:
        """Return the patient, joined or not, with the study's own id, or None."""
        with self.lock:
            return next((each for each in self.patients.values() if each.external_id == external_id), None)

    def invite(self, external_id: str | None, email: str | None) -> tuple[Patient, bool]:
        """Return the patient with these attributes, and whether the patient is new."""
        with self.lock:
            for each in self.patients.values():
                if (external_id and each.external_id == external_id) or (email and each.email == email):
                    return each, False
            number = uuid.uuid4().hex[:8]
            scenario = Scenario(f"patient-{number}", "added", delivered_before=False)
            patient = Patient(scenario.patient_id, scenario, external_id, f"ref-{number}", email, joined=False)
            self.patients[patient.patient_id] = patient
            return patient, True

    def add_request(self, project_id: str, patient_id: str) -> UpdateRequest:
        """Keep a request for an update, whatever the answer will be."""
        request = UpdateRequest(project_id, patient_id, datetime.now(timezone.utc))
        with self.lock:
            self.updates[patient_id].append(request)
        self.emit("requested", patient_id=patient_id, project_id=project_id, at=request.at)
        return request

    def updates_of(self, patient_id: str) -> list[UpdateRequest]:
        """Return a patient's requests, the earliest first."""
        with self.lock:
            return list(self.updates.get(patient_id, ()))

    def all_updates(self) -> list[UpdateRequest]:
        """Return the requests for all patients."""
        with self.lock:
            return [each for updates in self.updates.values() for each in updates]
