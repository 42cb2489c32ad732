"""Requests a refresh of many patients in one task: each once, and not again by accident."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_provider_healthex.arguments import CHUNK_NAME, boolean, is_rendered_later, name_chunks_alone, one_of
from airflow_provider_healthex.client import PatientUpdate, PatientUpdateFailure
from airflow_provider_healthex.client.bulk import check_concurrency
from airflow_provider_healthex.client.calls import identifier
from airflow_provider_healthex.exceptions import (
    HealthExAuthenticationError,
    HealthExConfigurationError,
    HealthExError,
    HealthExPermissionError,
    HealthExTokenError,
)
from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.links.healthex import HealthExProjectLink
from airflow_provider_healthex.metrics import count_request
from airflow_provider_healthex.operators.base import (
    ON_AMBIGUOUS,
    HealthExOperator,
    fail_on_permanent_errors,
    is_retryable,
    optional_flag,
)
from airflow_provider_healthex.operators.journal import IF_JUST_CLEARED, Journal, StateStoreError
from airflow_provider_healthex.operators.outcomes import PatientOutcome, Summary, some_ids

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

#: Seconds between two lines of progress in the log.
PROGRESS_INTERVAL = 10.0
#: Patients whose error the log has in full; the result has them all.
FAILURES_LOGGED = 20

#: Errors that every patient would get: the connection or its user has to be corrected.
_CONNECTION_ERRORS = (
    HealthExAuthenticationError,
    HealthExPermissionError,
    HealthExTokenError,
    HealthExConfigurationError,
)
_NOT_RETRIED = (
    "Not retried: HealthEx may have accepted updates, and this task would request them again. "
    "The task's result has the outcome of each patient."
)


class HealthExUpdateCohortOperator(HealthExOperator):
    """
    Requests a refresh of many patients' data in one task, several at once, and returns the outcome of each.

    Give its output to a ``HealthExCohortArrivalSensor``, or map it over chunks:
    ``.partial(task_id=…).expand(patient_ids=chunks)``. A patient's failure is reported, and the others are still
    requested. No more patients are requested after 401, 403, an expired token, a service that seems down or a
    Retry-After of more than 300 s, and the task fails; the same after ``on_kill``.

    HealthEx has no idempotency key and bills each retrieval, so no patient is requested twice by accident:

    - On Airflow >= 3.3 with ``durable``, a retry, also of a killed task, requests only patients who were not requested
      or whose error may be transient (not 404 and other 4xx). Those whose request was in flight when the task was
      killed are ambiguous. A clear by a person starts over, and requests all of them again.
    - Otherwise, once HealthEx accepted or may have accepted any, a failure of the task is final. **A killed process
      looks like one that never began: Airflow retries it, and it requests all patients again.** Set ``retries=0``
      to exclude that.

    :param patient_ids: HealthEx's ids, as text, or ``{"patient_id": …, "external_id": …}`` to carry your own id
        through to the sensor (templated). Duplicates are requested once. All are checked before any is requested.
        An empty list skips the task, as Airflow does when mapping over nothing.
    :param project_id: the project, default the connection's (templated).
    :param skip_interactive: ``skipInteractive`` of the API; None: not sent (templated; also ``"true"``, ``"false"``).
    :param max_concurrency: requests at once, 1 to 32. The connection's ``requests_per_second`` holds for all.
    :param max_failures: how many may fail, as a count (int) or as a fraction of the patients (float below 1), rounded
        up. A patient who needs to act is no failure.
    :param on_ambiguous: what to do when nobody knows whether HealthEx accepted an update. ``assume_started``: it is
        in progress with ``"ambiguous": True``, and the sensor shows whether data arrives. ``fail``: it counts as
        failed, and a retry does not request it again. ``retry``: it counts as failed, and with ``durable`` a retry
        requests it again, which may bill a second retrieval.
    :param durable: on Airflow >= 3.3, keep in the task's state store what was requested and answered. No effect below.
    :param healthex_conn_id: the Airflow connection (templated).
    :param map_index_template: Airflow's, for mapped tasks: their name in the UI, ``chunk 3`` by default. Below Airflow
        3.3, the default names those in a mapped task group alone.
    :returns: ``project_id``, ``organization_id``, ``requested_at`` (the earliest), and, in the order of
        ``patient_ids``: ``in_progress`` (``patient_id``, ``requested_at``, perhaps ``external_id``, ``ambiguous``),
        ``patient_action_needed`` (``patient_id``, ``reason``), ``failed`` (``patient_id``, ``status_code``,
        ``error``: the class's name). If some were not requested, which fails the task, also ``not_asked`` (ids).
        The result is pushed before the task fails.
    :raises AirflowFailException: more than ``max_failures`` failed, none is in progress, some were not requested, or
        401 or 403; and a retry is not safe, or can't help.
    :raises HealthExError: the same, where a retry goes on with the rest.
    :raises StateStoreError: the state store refused a write, and some patients were not requested; a retry goes on
        with the rest.
    """

    template_fields: Sequence[str] = ("patient_ids", "project_id", "skip_interactive", "healthex_conn_id")
    operator_extra_links = (HealthExProjectLink(),)
    ui_color = "#d9ebf7"

    def __init__(
        self,
        *,
        patient_ids: Sequence[str | Mapping[str, str]] | XComArg,
        project_id: str | XComArg | None = None,
        skip_interactive: bool | str | XComArg | None = None,
        max_concurrency: int = 8,
        max_failures: float = 0.05,
        on_ambiguous: str = "assume_started",
        durable: bool = True,
        healthex_conn_id: str | XComArg = HealthExHook.default_conn_name,
        map_index_template: str | None = CHUNK_NAME,
        **kwargs: Any,
    ) -> None:
        super().__init__(map_index_template=map_index_template, **kwargs)
        name_chunks_alone(self)
        if self.is_known_when_parsed(None):
            check_when_parsed(patient_ids)
        self.check_project_id(project_id)
        if self.is_known_when_parsed(skip_interactive):
            optional_flag("skip_interactive", skip_interactive)
        self.patient_ids = patient_ids
        self.project_id = project_id
        self.skip_interactive = skip_interactive
        self.max_concurrency = check_concurrency(max_concurrency)
        self.max_failures = check_max_failures(max_failures)
        self.on_ambiguous = one_of("on_ambiguous", on_ambiguous, ON_AMBIGUOUS)
        self.durable = boolean("durable", durable)
        self.healthex_conn_id = healthex_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Request the patients that no earlier try of this task has requested."""
        with fail_on_permanent_errors():
            external_ids = read_cohort(self.patient_ids)
            if not external_ids:
                raise AirflowSkipException("patient_ids is empty: there are no patients to request")
            project_id = self.resolve_project_id()
            skip_interactive = optional_flag("skip_interactive", self.skip_interactive)
        return _Try(self, context, external_ids, project_id).run(skip_interactive)


class _Try:
    """One try of the task."""

    def __init__(
        self,
        task: HealthExUpdateCohortOperator,
        context: Context,
        external_ids: Mapping[str, str | None],
        project_id: str,
    ) -> None:
        self.task = task
        self.log = task.log
        self.context = context
        self.external_ids = external_ids
        self.project_id = project_id
        self.journal = Journal.open(context, project_id, durable=task.durable)
        self.organization_id: str | None = None
        self.connection_error: HealthExError | None = None
        self.partial_updates = 0
        self.failures_logged = 0
        self.progress_logged_at = time.monotonic()

    def run(self, skip_interactive: bool | None) -> dict[str, Any]:
        try:
            self.organization_id = self.task.hook.get_conn().organization_id
            self._request(self._left_by_earlier_tries(), skip_interactive)
        except StateStoreError as error:
            self._end_without_store(error)
        except HealthExError as error:
            self._fail(str(error), error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # execution_timeout, or Airflow that ends the task, too
            self._break_off(error)
        self._log_outcome()
        reason = self._reason_to_fail()
        if reason:
            self._fail(reason, self.connection_error)
        return self._result()

    def _left_by_earlier_tries(self) -> list[str]:
        left = list(filter(self._may_be_requested, self.external_ids))
        known, total = len(self.external_ids) - len(left), len(self.external_ids)
        if known:
            self.log.info("%d of %d patients were requested by earlier tries; %d are left", known, total, len(left))
            if self.journal.run_was_cleared:
                self.log.warning("%s", IF_JUST_CLEARED)
        return left

    def _may_be_requested(self, patient_id: str) -> bool:
        return self.journal.outcome(patient_id).may_be_requested(self.task.on_ambiguous)

    def _request(self, patient_ids: list[str], skip_interactive: bool | None) -> None:
        answers = self.task.hook.update_patients_data(
            patient_ids,
            project_id=self.project_id,
            skip_interactive=skip_interactive,
            max_concurrency=self.task.max_concurrency,
            checkpoint=self.journal.checkpoint,
        )
        with closing(answers):  # type: ignore[type-var]
            for answer in answers:
                self._record(answer)
        # All answers are in: no patient is in flight any more.
        self.journal.checkpoint()

    def _record(self, answer: PatientUpdate | PatientUpdateFailure) -> None:
        outcome = PatientOutcome.of(answer, self.journal.ambiguous_since(answer.patient_id))
        self.journal.record(outcome)
        count_request(outcome.kind)
        if isinstance(answer, PatientUpdate):
            self.partial_updates += answer.skipped_facilities_count > 0
        else:
            self._record_failure(answer.error)
        if time.monotonic() - self.progress_logged_at >= PROGRESS_INTERVAL:
            self._log_progress()

    def _record_failure(self, error: HealthExError) -> None:
        if isinstance(error, _CONNECTION_ERRORS):
            self.connection_error = self.connection_error or error
        self.failures_logged += 1
        if self.failures_logged <= FAILURES_LOGGED:
            self.log.warning("%s", error)
        if self.failures_logged == FAILURES_LOGGED:
            self.log.warning("Further errors are in the result alone")

    # How the try ends

    def _end_without_store(self, error: StateStoreError) -> None:
        """Succeed if all patients were requested; otherwise leave the rest to a retry."""
        self.journal.flush()
        summary = self._summary()
        if not summary.not_requested:
            self.log.warning("%s, after all patients were requested", error)
            return
        self._log_progress()
        self._push()
        raise StateStoreError(
            f"{len(summary.not_requested)} of {summary.total} patients were not requested: {error}. "
            f"{summary.progress()}"
        ) from error

    def _break_off(self, error: BaseException) -> NoReturn:
        """Leave with an error that isn't HealthEx's; patients in flight are ambiguous."""
        self.journal.break_off()
        self.journal.flush()
        self._log_progress()
        self._push()
        if self._must_not_be_retried():
            raise AirflowFailException(f"{type(error).__name__}: {error}. {_NOT_RETRIED}") from error
        raise error

    def _log_progress(self) -> None:
        self.log.info("%s", self._summary().progress())
        self.progress_logged_at = time.monotonic()

    def _log_outcome(self) -> None:
        self._log_progress()
        if self.partial_updates:
            self.log.warning("Partial updates: %d. HealthEx skipped facilities of these patients", self.partial_updates)
        ambiguous = self._summary().ambiguous
        if ambiguous:
            ids = some_ids(ambiguous)
            self.log.warning("Ambiguous updates: %d. HealthEx may have accepted them: %s", len(ambiguous), ids)

    def _reason_to_fail(self) -> str:
        summary = self._summary()
        failed, not_requested = len(summary.failed), len(summary.not_requested)
        details = f" Failed: {summary.failures()}." if failed else ""
        if self.connection_error:
            return f"{self.connection_error} {summary.progress()}, {not_requested} not requested.{details}"
        if not_requested:
            return f"{not_requested} of {summary.total} patients were not requested. {summary.progress()}.{details}"
        if not summary.in_progress:
            return f"HealthEx accepted no update at all. {summary.progress()}.{details}"
        allowed = failures_allowed(self.task.max_failures, summary.total)
        if failed > allowed:
            return (
                f"{failed} of {summary.total} patients failed, more than max_failures={self.task.max_failures} allows "
                f"({allowed}).{details}"
            )
        return ""

    def _fail(self, reason: str, error: HealthExError | None) -> NoReturn:
        self._push()
        if self._must_not_be_retried():
            raise AirflowFailException(f"{reason} {_NOT_RETRIED}") from error
        if self._retry_may_help(error):
            raise HealthExError(reason) from error
        raise AirflowFailException(reason) from error

    def _must_not_be_retried(self) -> bool:
        return self._summary().may_be_billed and not self.journal.is_kept

    def _retry_may_help(self, error: HealthExError | None) -> bool:
        if error is not None and not self._summary().may_be_billed:
            return is_retryable(error, self.task.on_ambiguous)
        # Where some were accepted, also after 401 and 403: a connection that is corrected before the next try lets it
        # go on with the rest, while a clear would request all patients again.
        return any(map(self._may_be_requested, self.external_ids))

    def _push(self) -> None:
        if not self.task.do_xcom_push:
            return
        try:
            self.context["ti"].xcom_push(key="return_value", value=self._result())
        except Exception:
            # An error here must not decide whether the task is retried.
            self.log.exception("The result could not be pushed")

    def _result(self) -> dict[str, Any]:
        return self._summary().to_dict(self.project_id, self.organization_id)

    def _summary(self) -> Summary:
        outcomes = [self.journal.outcome(patient_id) for patient_id in self.external_ids]
        return Summary(outcomes, self.external_ids, assume_started=self.task.on_ambiguous == "assume_started")


def check_max_failures(max_failures: object) -> float:
    """Return how many may fail: an int is a count, a float below 1 a fraction."""
    if (type(max_failures) is int and max_failures >= 0) or (type(max_failures) is float and 0 <= max_failures < 1):
        return max_failures
    raise HealthExConfigurationError(
        f"max_failures must be a count (int) or a fraction below 1 (float), such as 0.05 (got {max_failures!r})"
    )


def failures_allowed(max_failures: float, total: int) -> int:
    """Return the count that a fraction of the patients means, rounded up."""
    if isinstance(max_failures, int):
        return max_failures
    # By its decimal digits: 0.29 * 100 is more than 29 in floating point.
    return ceil(Fraction(str(max_failures)) * total)


def check_when_parsed(patient_ids: object) -> None:
    """Refuse what is unusable in the DAG file's list, as far as it isn't rendered or resolved later."""
    # An iterator can be read only once.
    if isinstance(patient_ids, (list, tuple)) or not (
        is_rendered_later(patient_ids) or isinstance(patient_ids, Iterator)
    ):
        read_cohort(patient_ids, skip_rendered=True)


def read_cohort(patient_ids: object, *, skip_rendered: bool = False) -> dict[str, str | None]:
    """
    Return the patients in the order they were given, each with its external id or None.

    :raises HealthExConfigurationError: it isn't a list, or an entry can't be used; its position is named.
    """
    if patient_ids is None:
        raise HealthExConfigurationError(
            "patient_ids must be a list of ids (got None): the task or parameter it comes from has no value"
        )
    if isinstance(patient_ids, (str, bytes, Mapping)) or not isinstance(patient_ids, Iterable):
        raise HealthExConfigurationError(
            f"patient_ids must be a list of ids (got {type(patient_ids).__name__}). A template gives a list only with "
            "the DAG's render_template_as_native_obj=True; a task's output does so as it is"
        )
    cohort: dict[str, str | None] = {}
    for index, entry in enumerate(patient_ids):
        if skip_rendered and is_rendered_later(entry):
            continue
        patient_id, external_id = _read_entry(index, entry)
        earlier = cohort.get(patient_id)
        if earlier is not None and external_id is not None and earlier != external_id:
            raise HealthExConfigurationError(
                f"patient_ids[{index}] must have the same external id as an earlier entry of patient '{patient_id}'"
            )
        cohort[patient_id] = earlier if earlier is not None else external_id
    return cohort


def _read_entry(index: int, entry: object) -> tuple[str, str | None]:
    name = f"patient_ids[{index}]"
    if not isinstance(entry, Mapping):
        return identifier(name, entry), None
    unknown = [str(key) for key in entry if key not in ("patient_id", "external_id")]
    if unknown or "patient_id" not in entry:
        raise HealthExConfigurationError(
            f"{name} must have the key 'patient_id', and may have 'external_id' (got {sorted(map(str, entry))})"
        )
    external_id = entry.get("external_id")
    if external_id is not None:
        external_id = identifier(f"{name}['external_id']", external_id, shown=False)
    return identifier(f"{name}['patient_id']", entry["patient_id"]), external_id
