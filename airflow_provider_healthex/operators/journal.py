"""What a task has asked of HealthEx, kept over its automatic retries in Airflow's task state store (3.3 and later)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_provider_healthex.client.models import whole_seconds
from airflow_provider_healthex.operators.outcomes import AMBIGUOUS, NOT_ASKED, Outcome

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Bytes of outcomes after which a page is full. The store takes 64 KB a value, and each write costs by its size.
FULL = 16_000


def _store_and_series(context: Context) -> tuple[Any, int]:
    """
    Return the task's state store, None below Airflow 3.3, and the series of this try.

    Airflow keeps a task's state when a person clears it, too. A clear raises ``max_tries`` and a retry doesn't, so
    their difference to ``retries`` tells one from the other.
    """
    store: Any = context.get("task_state_store")
    if store is None:
        return None, 0
    ti = context["ti"]
    return store, (ti.max_tries or 0) - (ti.task.retries or 0)


class UpdateJournal:
    """
    What this task has asked of HealthEx, over its automatic retries; kept nowhere without a state store.

    Records of another series, or of another patient (a template may render anew), are as good as absent.
    """

    key = "healthex_update"

    def __init__(self, store: Any = None, series: int = 0, subject: Sequence[str | None] = ()) -> None:
        self._store = store
        self._series = series
        self._subject = list(subject)
        self._record: dict[str, Any] = {}  # as an earlier try left it
        record = store.get(self.key) if store is not None else None
        if isinstance(record, dict) and (record.get("series"), record.get("subject")) == (series, self._subject):
            self._record = record

    @classmethod
    def open(cls, context: Context, *subject: str | None) -> UpdateJournal:
        """Return this task's journal of a project's patient; below Airflow 3.3 an empty one."""
        return cls(*_store_and_series(context), subject)

    @property
    def answer(self) -> dict[str, Any] | None:
        """The answer an earlier try was given."""
        return self._record.get("answer")

    @property
    def lost_since(self) -> datetime | None:
        """The baseline of the earliest try whose outcome is unknown."""
        lost = self._record.get("requested_at")
        return datetime.fromisoformat(lost) if lost else None

    def begin(self) -> None:
        """Note, before asking, that the outcome is unknown until an answer is noted."""
        self._write(self.lost_since or datetime.now(timezone.utc))

    def lose(self, requested_at: datetime | None) -> None:
        """Note that the outcome stays unknown, by the baseline of the try."""
        self._write(self.lost_since or requested_at or datetime.now(timezone.utc))

    def withdraw(self) -> None:
        """Note that this try started nothing."""
        self._write(self.lost_since)

    def end(self, answer: dict[str, Any]) -> None:
        """Note the answer."""
        self._write(self.lost_since, answer)

    def _write(self, requested_at: datetime | None, answer: dict[str, Any] | None = None) -> None:
        if self._store is None:
            return
        lost = whole_seconds(requested_at) if requested_at else None
        record = {"series": self._series, "subject": self._subject, "requested_at": lost, "answer": answer}
        self._store.set(self.key, record)


class CohortJournal:
    """
    What this task has asked of HealthEx for many patients, over its automatic retries; nowhere without a store.

    **How it is kept.** In pages, each a value of the store under a numbered key. A page has the patients who are
    *open* (they may have been asked, and no outcome is known) with the moment that was written, and *outcomes*.

    1. Before patients are handed over to be asked, one ``set`` writes the page with them among the open ones,
       together with all outcomes known by then (:meth:`checkpoint`). The same before every wait, where there are
       outcomes to write. So whoever was asked is either open or has an outcome, whenever the process ends, and open
       are only those in flight, the few handed over ahead of them, and who was answered while one write took place.
    2. A page with enough outcomes is left as it is, and the open ones go on to the next, so that a ``set`` stays
       small however many patients there are.
    3. The next try reads the pages in order: an outcome closes what was opened before it. Who is still open is
       *lost*: HealthEx may have started the update. It writes to a page of its own, after the last.
    4. A clear by a person begins another series: its pages overwrite from the first on, and reading ends at the
       first page of an older series.
    """

    key = "healthex_cohort_{}"

    def __init__(self, store: Any = None, series: int = 0) -> None:
        self._store = store
        self._series = series
        self._number = 0
        self._size = 0
        self._dirty = False
        self._open: dict[str, str] = {}
        self._page: dict[str, Any] = {}
        #: By patient; of the earlier tries only until this one notes another.
        self.outcomes: dict[str, Outcome] = {}
        if store is not None:
            self._read()

    @classmethod
    def open(cls, context: Context) -> CohortJournal:
        """Return this task's journal; below Airflow 3.3 an empty one."""
        return cls(*_store_and_series(context))

    @property
    def is_kept(self) -> bool:
        """Whether a retry will know what this try has asked."""
        return self._store is not None

    @property
    def unanswered(self) -> tuple[str, ...]:
        """Who was handed over and has no outcome yet."""
        return tuple(self._open)

    def lost_since(self, patient_id: str) -> datetime | None:
        """Return the baseline of the earliest update of the patient whose outcome is unknown."""
        outcome = self.outcomes.get(patient_id)
        return outcome.requested_at if outcome and outcome.kind == AMBIGUOUS else None

    def checkpoint(self, patient_ids: Sequence[str] = ()) -> None:
        """Write what is known, and that the outcome of these patients is unknown from now on until it is noted."""
        now = datetime.now(timezone.utc)
        for patient_id in patient_ids:
            self._open[patient_id] = whole_seconds(self.lost_since(patient_id) or now)
        if patient_ids or self._dirty:
            self._write()

    def note(self, outcome: Outcome) -> None:
        """Note an outcome; the next checkpoint writes it."""
        self._open.pop(outcome.patient_id, None)
        self.outcomes[outcome.patient_id] = outcome
        self._page[outcome.patient_id] = record = outcome.to_record()
        self._size += len(json.dumps([outcome.patient_id, record]))
        self._dirty = True

    def withdraw(self, patient_ids: Iterable[str]) -> None:
        """Note that this try asked nothing for these patients; what an earlier one may have started stays open."""
        for patient_id in patient_ids:
            self.note(self.outcomes.get(patient_id) or Outcome(patient_id, NOT_ASKED))

    def _write(self) -> None:
        self._dirty = False
        if self._store is None:
            return
        page = {"series": self._series, "open": self._open, "outcomes": self._page}
        self._store.set(self.key.format(self._number), page)
        if self._size > FULL:
            self._turn_page()

    def _turn_page(self) -> None:
        self._number += 1
        self._page, self._size = {}, 0

    def _read(self) -> None:
        lost: dict[str, str] = {}
        while True:
            page = self._store.get(self.key.format(self._number))
            if not isinstance(page, dict) or page.get("series") != self._series:
                break
            for patient_id, record in page["outcomes"].items():
                lost.pop(patient_id, None)
                self.outcomes[patient_id] = Outcome.from_record(patient_id, record)
            lost.update(page["open"])
            self._number += 1
        for patient_id, since in lost.items():
            self.outcomes[patient_id] = Outcome(patient_id, AMBIGUOUS, requested_at=datetime.fromisoformat(since))
