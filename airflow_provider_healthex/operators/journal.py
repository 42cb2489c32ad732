"""What a task has requested of HealthEx, kept over its automatic retries in Airflow's task state store (from 3.3)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_provider_healthex.client.models import whole_seconds
from airflow_provider_healthex.exceptions import HealthExConnectionError
from airflow_provider_healthex.operators.outcomes import AMBIGUOUS, NOT_REQUESTED, Outcome

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

#: Bytes of outcomes after which a page is full. The store takes 64 KB a value, and each write costs by its size.
FULL = 16_000

#: For a person who has cleared a task and meets what an earlier try left.
IF_JUST_CLEARED = (
    "If this task has just been cleared: Airflow can leave a running task that is cleared together with others with "
    "its old count of tries, which looks like an automatic retry. Clear it once more, now that it is not running, to "
    "start over."
)


class StateStoreError(HealthExConnectionError):
    """Airflow's task state store could not keep what a retry must know: what depends on it was not requested."""


@dataclass(frozen=True)
class Attempt:
    """
    What Airflow says of this try, which sets a retry apart from a clear: the store survives both.

    A *series* is a try and its automatic retries. The store keeps ``[max_tries, clear_number]`` of its start. Airflow
    stores ``max_tries`` with the task instance: a retry leaves it as it is, and a clear sets it to the tries used so
    far plus ``retries``. That can be the number that was there, where ``retries`` was edited before.
    ``clear_number`` counts the clears of the run, whichever task they were for. So another ``max_tries`` is another
    series; and another ``clear_number`` alone only where ``max_tries`` is what a clear of this task, just before this
    try, would have left.

    What remains: ``retries`` is edited to just the value that fits *and* another task of the run is cleared while
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
        run: Any = context.get("dag_run")
        return cls(
            max_tries=ti.max_tries or 0,
            clear_number=getattr(run, "clear_number", None) or 0,
            retries=ti.task.retries or 0,
            try_number=ti.try_number,
        )

    @property
    def start(self) -> list[int]:
        """The series that starts with this try."""
        return [self.max_tries, self.clear_number]

    def continues(self, series: list[int]) -> bool:
        """Whether this try is an automatic retry within a series that the store has."""
        max_tries, clear_number = series
        if max_tries != self.max_tries:
            return False
        return clear_number == self.clear_number or max_tries != self.retries + self.try_number - 1


class UpdateJournal:
    """
    What this task has requested of HealthEx, over its automatic retries; kept nowhere without a state store.

    Records of another series, or of another patient (a template may render anew), are ignored.
    """

    key = "healthex_update"

    def __init__(
        self,
        store: Any = None,
        attempt: Attempt = Attempt(),
        subject: Sequence[str | None] = (),
    ) -> None:
        self._store = store
        self._series: list[int] = attempt.start
        self._subject = list(subject)
        self._record: dict[str, Any] = {}  # as an earlier try left it
        self._begun = False
        #: Whether a task of the run was cleared since the series began, this one perhaps among them.
        self.run_was_cleared = False
        record = store.get(self.key) if store is not None else None
        if isinstance(record, dict) and record.get("subject") == self._subject:
            series = record.get("series")
            if isinstance(series, list) and attempt.continues(series):
                self._record, self._series = record, series
                self.run_was_cleared = series != attempt.start

    @classmethod
    def open(cls, context: Context, *subject: str | None) -> UpdateJournal:
        """Return this task's journal of a project's patient; below Airflow 3.3 an empty one."""
        return cls(context.get("task_state_store"), Attempt.of(context), subject)

    @property
    def answer(self) -> dict[str, Any] | None:
        """The answer to an earlier try."""
        return self._record.get("answer")

    @property
    def may_have_started_at(self) -> datetime | None:
        """``requested_at`` of the earliest try whose outcome is unknown."""
        requested_at = self._record.get("requested_at")
        return datetime.fromisoformat(requested_at) if requested_at else None

    def checkpoint(self, in_flight: Sequence[str]) -> None:
        """Follow the client: write the intent just before a try is sent, and withdraw it after a rejection."""
        if in_flight:
            self.begin()
        else:
            self.withdraw()

    def begin(self) -> None:
        """
        Write that the outcome is unknown from now on.

        :raises StateStoreError: the store is away, or another try has taken this one's place.
        """
        self._write(self.may_have_started_at or datetime.now(timezone.utc))
        self._begun = True

    def lose(self, requested_at: datetime | None) -> None:
        """Write that the outcome stays unknown, by the ``requested_at`` of the try."""
        self._try_to_write(self.may_have_started_at or requested_at or datetime.now(timezone.utc))

    def withdraw(self) -> None:
        """Write that this try started nothing."""
        if self._begun:
            self._try_to_write(self.may_have_started_at)
            self._begun = False

    def end(self, answer: dict[str, Any]) -> None:
        """Write the answer."""
        self._try_to_write(self.may_have_started_at, answer)

    def _try_to_write(self, requested_at: datetime | None, answer: dict[str, Any] | None = None) -> None:
        """Write where the store takes it: what it has from before this try was sent is safe, too."""
        try:
            self._write(requested_at, answer)
        except StateStoreError as error:
            log.warning("%s; an automatic retry would take this update for ambiguous", error)

    def _write(self, requested_at: datetime | None, answer: dict[str, Any] | None = None) -> None:
        record = {
            "series": self._series,
            "subject": self._subject,
            "requested_at": whole_seconds(requested_at) if requested_at else None,
            "answer": answer,
        }
        _set(self._store, self.key, record)


def _set(store: Any, key: str, value: dict[str, Any]) -> None:
    if store is None:
        return
    try:
        store.set(key, value)
    except Exception as error:
        raise StateStoreError(f"The task state store took no write ({type(error).__name__}: {error})") from error


class CohortJournal:
    """
    What this task has requested of HealthEx for many patients, over its automatic retries; nowhere without a store.

    **How it is kept.** In pages, each a value of the store under a numbered key. A page has the patients who are
    *open* (they may be in flight, and no outcome is known) with the moment that was written, and *outcomes*.

    1. Just before requests are sent, one ``set`` writes the page with these patients among the open ones, together
       with all outcomes known by then (:meth:`checkpoint`). The same when only outcomes have come. So whenever the
       process ends, each patient who was requested is either open or has an outcome, and open are only those in
       flight, those that the last write was for, and those that were answered during that write.
    2. A page with enough outcomes is left as it is, and the open ones go on to the next, so that a ``set`` stays
       small however many patients there are.
    3. The next try reads the pages in order: an outcome closes what was opened before it. A patient who is still open
       is *ambiguous*. The try writes to a page of its own, after the last.
    4. A clear by a person begins another series (:class:`Attempt`): its pages overwrite from the first on, and
       reading ends at the first page of an older series.
    """

    key = "healthex_cohort_{}"

    def __init__(self, store: Any = None, attempt: Attempt = Attempt()) -> None:
        self._store = store
        self._series: list[int] = attempt.start
        self._number = 0
        self._size = 0
        self._open: dict[str, str] = {}
        self._page: dict[str, Any] = {}
        # Whether the last write failed, perhaps after the store had taken it.
        self._in_doubt = False
        #: Outcomes of this try that the store hasn't got yet.
        self.unwritten: dict[str, Any] = {}
        #: By patient; of the earlier tries only until this one has another.
        self.outcomes: dict[str, Outcome] = {}
        #: Whether a task of the run was cleared since the series began, this one perhaps among them.
        self.run_was_cleared = False
        if store is not None:
            self._read(attempt)

    @classmethod
    def open(cls, context: Context) -> CohortJournal:
        """Return this task's journal; below Airflow 3.3 an empty one."""
        return cls(context.get("task_state_store"), Attempt.of(context))

    @property
    def is_kept(self) -> bool:
        """Whether a retry will know what this try has requested."""
        return self._store is not None

    @property
    def unanswered(self) -> tuple[str, ...]:
        """Patients who may be in flight, without an outcome."""
        return tuple(self._open)

    def may_have_started_at(self, patient_id: str) -> datetime | None:
        """Return ``requested_at`` of the patient's earliest update whose outcome is unknown."""
        outcome = self.outcomes.get(patient_id)
        return outcome.requested_at if outcome and outcome.kind == AMBIGUOUS else None

    def checkpoint(self, in_flight: Sequence[str] = ()) -> None:
        """
        Write what is known: the outcomes, and that these patients, and no others, may be in flight.

        :raises StateStoreError: the store is away, or another try has taken this one's place.
        """
        now = datetime.now(timezone.utc)
        self._withdraw(set(self._open).difference(in_flight))
        added = {
            patient_id: whole_seconds(self.may_have_started_at(patient_id) or now)
            for patient_id in in_flight
            if patient_id not in self._open
        }
        if added or self.unwritten:
            self._in_doubt = True
            self._write({**self._open, **added})
        self._open.update(added)

    def note(self, outcome: Outcome) -> None:
        """Take an outcome; the next checkpoint writes it."""
        self._open.pop(outcome.patient_id, None)
        self.outcomes[outcome.patient_id] = outcome
        self._page[outcome.patient_id] = self.unwritten[outcome.patient_id] = record = outcome.to_record()
        self._size += len(json.dumps([outcome.patient_id, record]))

    def keep(self) -> None:
        """Write what isn't written yet, as far as the store takes it, and log it otherwise. For the end of a try."""
        try:
            if self.unwritten or self._in_doubt:
                self._write(self._open)
        except StateStoreError as error:
            log.warning(
                "%s. A retry would take these updates for ambiguous, or not know them: %s",
                error,
                json.dumps(self.unwritten),
            )

    def _withdraw(self, patient_ids: Iterable[str]) -> None:
        """Note that this try started nothing for these patients; what an earlier one may have started stays open."""
        for patient_id in patient_ids:
            self.note(self.outcomes.get(patient_id) or Outcome(patient_id, NOT_REQUESTED))

    def _write(self, in_flight: dict[str, str]) -> None:
        page = {"series": self._series, "open": in_flight, "outcomes": self._page}
        _set(self._store, self.key.format(self._number), page)
        self.unwritten, self._in_doubt = {}, False
        if self._size > FULL and self._store is not None:
            self._turn_page()

    def _turn_page(self) -> None:
        self._number += 1
        self._page, self._size = {}, 0

    def _read(self, attempt: Attempt) -> None:
        open_: dict[str, str] = {}
        while True:
            page = self._store.get(self.key.format(self._number))
            if not isinstance(page, dict):
                break
            series = page.get("series")
            if self._number == 0 and isinstance(series, list) and attempt.continues(series):
                self._series = series
                self.run_was_cleared = series != attempt.start
            if series != self._series:
                break
            for patient_id, record in page["outcomes"].items():
                open_.pop(patient_id, None)
                self.outcomes[patient_id] = Outcome.from_record(patient_id, record)
            open_.update(page["open"])
            self._number += 1
        for patient_id, since in open_.items():
            self.outcomes[patient_id] = Outcome(patient_id, AMBIGUOUS, requested_at=datetime.fromisoformat(since))
