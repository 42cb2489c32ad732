"""A task's requests, kept over its automatic retries in Airflow's task state store (Airflow 3.3 and later)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_provider_healthex.client.models import whole_seconds
from airflow_provider_healthex.exceptions import HealthExConnectionError
from airflow_provider_healthex.operators.outcomes import AMBIGUOUS, NOT_REQUESTED, PatientOutcome

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

#: Bytes of outcomes after which a page is full. The store takes 64 KB a value, and each write costs by its size.
PAGE_SIZE = 16_000

#: For a person who has cleared a task, and sees it continue an earlier try.
IF_JUST_CLEARED = (
    "If this task has just been cleared: Airflow can leave a running task that is cleared together with others with "
    "its old count of tries, which looks like an automatic retry. Clear it once more, now that it is not running, to "
    "start over."
)


class StateStoreError(HealthExConnectionError):
    """Airflow's task state store refused a write that a retry depends on: the request for it was not sent."""


@dataclass(frozen=True)
class Attempt:
    """
    Distinguishes an automatic retry from a clear by a person: the store survives both.

    A *series* is a try and its automatic retries. The store keeps ``[max_tries, clear_number]`` of its start.

    - ``max_tries``: a retry keeps it. A clear sets it to the tries used so far plus ``retries``. If it changed, this is
      a new series.
    - ``clear_number`` counts the clears of the run, of any of its tasks. If it alone changed, this is a new series only
      if ``max_tries`` equals ``retries + try_number - 1``, as a clear of this task just before this try leaves it.

    Not covered: ``retries`` is edited to just the value that fits *and* another task of the run is cleared while
    this one waits for its retry. That is taken for a clear.

    :param max_tries: of the task instance.
    :param clear_number: of the run.
    :param retries: of the task, as this worker has parsed it.
    :param try_number: from 1.
    """

    max_tries: int = 0
    clear_number: int = 0
    retries: int = 0
    try_number: int = 1

    @classmethod
    def of(cls, context: Context) -> Attempt:
        """Read it from the task's context."""
        ti: Any = context["ti"]
        return cls(
            max_tries=ti.max_tries or 0,
            clear_number=getattr(context.get("dag_run"), "clear_number", None) or 0,
            retries=ti.task.retries or 0,
            try_number=ti.try_number,
        )

    @property
    def start(self) -> list[int]:
        """The series that starts with this try."""
        return [self.max_tries, self.clear_number]

    def continues(self, series: object) -> bool:
        """Whether this try is an automatic retry within a series that the store has."""
        if not isinstance(series, list) or series[0] != self.max_tries:
            return False
        return series[1] == self.clear_number or self.max_tries != self.retries + self.try_number - 1


class Journal:
    """
    A task's requests and their outcomes, over its automatic retries; kept nowhere without a state store.

    They are kept in pages, each a value of the store under a numbered key. A page has *outcomes*, and the *open*
    patients, who may be in flight without an outcome, each with the moment of that write.

    1. Just before requests are sent, :meth:`checkpoint` writes the page: their patients are open, and all outcomes
       known by then are in it. So whenever the process ends, each patient who was requested is open or has an
       outcome, and open are only those in flight, or about to be, or answered during the last write.
    2. A page with enough outcomes is left as it is, and the open patients go on to the next, so that a write stays
       small however many patients there are.
    3. The next try reads the pages in order: an outcome closes what was opened before it. A patient who is still open
       is *ambiguous*. The try writes to a page of its own, after the last.
    4. A clear by a person begins another series: its pages overwrite from the first on, and reading ends at the first
       page of an older series. The same for another project, where a template or the connection has changed.
    """

    key = "healthex_journal_{}"

    def __init__(self, store: Any = None, attempt: Attempt = Attempt(), project_id: str | None = None) -> None:
        self._store = store
        self._project_id = project_id
        self._series = attempt.start
        self._page_number = 0
        self._page: dict[str, Any] = {}
        self._page_size = 0
        self._open: dict[str, str] = {}
        self._unwritten: dict[str, Any] = {}
        # Whether the last write failed, perhaps after the store had taken it.
        self._in_doubt = False
        #: By patient; of an earlier try only until this one has another.
        self.outcomes: dict[str, PatientOutcome] = {}
        #: Whether a task of the run, this one perhaps among them, was cleared since the series began.
        self.run_was_cleared = False
        if store is not None:
            self._read(attempt)

    @classmethod
    def open(cls, context: Context, project_id: str | None, *, durable: bool) -> Journal:
        """Return this task's journal; an empty one below Airflow 3.3, and where it isn't durable."""
        return cls(context.get("task_state_store"), Attempt.of(context), project_id) if durable else cls()

    @property
    def is_kept(self) -> bool:
        """Whether a retry will know what this try has requested."""
        return self._store is not None

    def outcome(self, patient_id: str) -> PatientOutcome:
        """Return the last outcome of a patient; one who has none was not requested."""
        return self.outcomes.get(patient_id) or PatientOutcome(patient_id, NOT_REQUESTED)

    def ambiguous_since(self, patient_id: str) -> str | None:
        """Return ``requested_at`` of the patient's earliest request whose outcome is unknown."""
        outcome = self.outcome(patient_id)
        return outcome.requested_at if outcome.kind == AMBIGUOUS else None

    def checkpoint(self, in_flight: Sequence[str] = ()) -> None:
        """
        Write what is known: the outcomes, and that these patients, and no others, may be in flight.

        :raises StateStoreError: the store refused the write, or another try has taken this one's place. Without a
            patient in flight no request depends on the write, and this is logged instead.
        """
        for patient_id in set(self._open).difference(in_flight):
            # This try's request was not sent, or rejected: the outcome of an earlier one stays.
            self.record(self.outcome(patient_id))
        if not in_flight:
            self.flush()
            return
        now = whole_seconds(datetime.now(timezone.utc))
        added = {each: self.ambiguous_since(each) or now for each in in_flight if each not in self._open}
        if added or self._unwritten:
            self._in_doubt = True
            self._write({**self._open, **added})
        self._open.update(added)

    def record(self, outcome: PatientOutcome) -> None:
        """Take an outcome; the next checkpoint writes it."""
        patient_id, record = outcome.patient_id, outcome.to_record()
        self._open.pop(patient_id, None)
        self.outcomes[patient_id] = outcome
        self._page[patient_id] = self._unwritten[patient_id] = record
        self._page_size += len(json.dumps([patient_id, record]))

    def break_off(self) -> None:
        """Take the patients in flight as ambiguous, as a retry would: their answers are not read any more."""
        for patient_id, requested_at in self._open.items():
            self.outcomes[patient_id] = PatientOutcome.ambiguous(patient_id, requested_at)

    def flush(self) -> None:
        """Write the outcomes that aren't written yet, or else log them. For the end of a try."""
        try:
            if self._unwritten or self._in_doubt:
                self._write(self._open)
        except StateStoreError as error:
            outcomes = json.dumps(self._unwritten)
            log.warning("%s. A retry takes these updates for ambiguous: %s", error, outcomes)

    def _write(self, in_flight: dict[str, str]) -> None:
        page = {"series": self._series, "project_id": self._project_id, "open": in_flight, "outcomes": self._page}
        _set(self._store, self.key.format(self._page_number), page)
        self._unwritten, self._in_doubt = {}, False
        if self._page_size > PAGE_SIZE:
            self._page_number += 1
            self._page, self._page_size = {}, 0

    def _read(self, attempt: Attempt) -> None:
        left_open: dict[str, str] = {}
        while isinstance(page := self._store.get(self.key.format(self._page_number)), dict):
            if self._page_number == 0 and attempt.continues(page["series"]):
                self._series = page["series"]
            if page["series"] != self._series or page["project_id"] != self._project_id:
                break
            for patient_id, record in page["outcomes"].items():
                left_open.pop(patient_id, None)
                self.outcomes[patient_id] = PatientOutcome.from_record(patient_id, record)
            left_open.update(page["open"])
            self._page_number += 1
        self.run_was_cleared = self._page_number > 0 and self._series != attempt.start
        for patient_id, requested_at in left_open.items():
            self.outcomes[patient_id] = PatientOutcome.ambiguous(patient_id, requested_at)


def _set(store: Any, key: str, value: dict[str, Any]) -> None:
    if store is None:
        return
    try:
        store.set(key, value)
    except Exception as error:
        raise StateStoreError(f"The task state store refused a write ({type(error).__name__}: {error})") from error
