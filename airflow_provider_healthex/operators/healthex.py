"""The operators; and of them, the one that asks for one patient: once, and never again by accident."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_provider_healthex.arguments import one_of
from airflow_provider_healthex.client import IN_PROGRESS, PatientUpdate
from airflow_provider_healthex.client.calls import identifier
from airflow_provider_healthex.client.models import whole_seconds
from airflow_provider_healthex.client.reasons import patient_action_needed
from airflow_provider_healthex.exceptions import HealthExError, HealthExUpdateAmbiguousError
from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.links.healthex import HealthExProjectLink
from airflow_provider_healthex.operators.base import HealthExOperator
from airflow_provider_healthex.operators.cohort import HealthExUpdateCohortOperator
from airflow_provider_healthex.operators.consents import HealthExListConsentedPatientsOperator
from airflow_provider_healthex.operators.journal import UpdateJournal
from airflow_provider_healthex.operators.retrying import ON_AMBIGUOUS, may_be_retried

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = [
    "HealthExListConsentedPatientsOperator",
    "HealthExUpdateCohortOperator",
    "HealthExUpdatePatientOperator",
]

ON_PATIENT_ACTION = ("fail", "skip", "return")


class HealthExUpdatePatientOperator(HealthExOperator):
    """
    Asks HealthEx to refresh one patient's data, and returns what it answered.

    The call only starts the retrieval; the data comes minutes to about an hour later (docs.healthex.io). Give this
    task's output to a :class:`~airflow_provider_healthex.sensors.healthex.HealthExDataArrivalSensor`, which waits
    for objects newer than ``requested_at``.

    HealthEx has no idempotency key and bills each retrieval, so an update whose answer was lost is never repeated
    by accident. See ``on_ambiguous`` and ``durable``.

    :param patient_id: HealthEx's id of the patient (templated). It is shown in XCom and in logs.
    :param project_id: the project, default the connection's (templated).
    :param skip_interactive: ``skipInteractive`` of the API; None: not sent.
    :param on_patient_action: what to do when HealthEx answers ``PATIENT_ACTION_NEEDED``: ``fail`` (not retried),
        ``skip``, or ``return`` the answer, for branching. Of a mapped operator, ``return`` it, and let the mapped
        sensor ``skip``: where one mapped task is skipped, Airflow's default trigger rule skips all of the sensor.
    :param on_ambiguous: what to do when nobody knows whether HealthEx accepted the update: ``fail`` (not retried),
        ``retry`` (Airflow may ask again, which may bill a second retrieval), or ``assume_started``: return it as
        in progress with ``"ambiguous": True``; the sensor tells the truth.
    :param durable: on Airflow >= 3.3, keep in the task's state store what was asked and answered, so that an
        automatic retry resumes: an accepted update is returned, an ambiguous one is handled by ``on_ambiguous``.
        A clear by a person starts over. No effect below 3.3.
    :param healthex_conn_id: the Airflow connection (templated).
    :returns: ``project_id``, ``patient_id``, ``organization_id``, ``message``, ``patient_action_needed_reason``,
        ``retrieval_id``, ``skipped_facilities_count``, ``counts``, ``requested_at``.
    :raises AirflowFailException: from the typed error, for what asking again can't mend: 401, 403, 404, other 4xx,
        a bad connection, token or argument, a patient who must act, an ambiguous update.
    :raises HealthExConnectionError: when the request never reached HealthEx; Airflow may retry.
    :raises HealthExRateLimitError: for a 429 that outlasted the hook's own patience; Airflow may retry.
    :raises HealthExServerError: for a 503 with Retry-After, likewise.
    :raises HealthExUpdateAmbiguousError: with ``on_ambiguous="retry"``; Airflow may retry.
    """

    template_fields: Sequence[str] = ("patient_id", "project_id", "healthex_conn_id")
    operator_extra_links = (HealthExProjectLink(),)
    ui_color = "#d9ebf7"

    def __init__(
        self,
        *,
        patient_id: str,
        project_id: str | None = None,
        skip_interactive: bool | None = None,
        on_patient_action: str = "fail",
        on_ambiguous: str = "fail",
        durable: bool = True,
        healthex_conn_id: str = HealthExHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.patient_id = patient_id
        self.project_id = project_id
        self.skip_interactive = skip_interactive
        self.on_patient_action = one_of("on_patient_action", on_patient_action, ON_PATIENT_ACTION)
        self.on_ambiguous = one_of("on_ambiguous", on_ambiguous, ON_AMBIGUOUS)
        self.durable = durable
        self.healthex_conn_id = healthex_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask, unless an earlier try of this task has."""
        journal = UpdateJournal()
        if self.durable:
            journal = UpdateJournal.open(context, self.project_id, self.patient_id)
        try:
            answer = journal.answer or self._ask(journal)
        except HealthExError as error:
            if may_be_retried(error, self.on_ambiguous):
                raise
            raise AirflowFailException(str(error)) from error
        return self._conclude(answer)

    def _ask(self, journal: UpdateJournal) -> dict[str, Any]:
        lost = journal.lost_since
        if lost and self.on_ambiguous != "retry":
            return self._handle_ambiguous(
                HealthExUpdateAmbiguousError(
                    f"An earlier try of this task asked HealthEx at {whole_seconds(lost)} to update patient "
                    f"{self.patient_id} and ended before an answer was kept.",
                    requested_at=lost,
                )
            )
        # All that can fail before anything is sent comes before the journal says that something may have been.
        patient_id = identifier("patient_id", self.patient_id)
        project_id = self.hook.resolve_project_id(self.project_id)
        self.hook.get_conn().check_token()
        self.log.info("Asking HealthEx to update patient %s", patient_id)
        journal.begin()
        try:
            update = self.hook.update_patient_data(
                patient_id, project_id=project_id, skip_interactive=self.skip_interactive
            )
        except HealthExUpdateAmbiguousError as error:
            journal.lose(error.requested_at)
            return self._handle_ambiguous(error)
        except HealthExError:
            journal.withdraw()
            raise
        answer = replace(update, requested_at=lost or update.requested_at).to_dict()
        journal.end(answer)
        return answer

    def _handle_ambiguous(self, error: HealthExUpdateAmbiguousError) -> dict[str, Any]:
        if self.on_ambiguous != "assume_started":
            raise error
        self.log.warning("%s It is assumed to have started, as on_ambiguous says.", error)
        return assumed_update(
            self.hook.resolve_project_id(self.project_id),
            self.patient_id,
            self._organization_id(),
            error.requested_at or datetime.now(timezone.utc),
        )

    def _organization_id(self) -> str | None:
        """Return the organisation, or None where the token has ended meanwhile: what was asked is told all the same."""
        try:
            return self.hook.get_conn().organization_id
        except HealthExError as error:
            self.log.warning("The organisation isn't known: %s", error)
            return None

    def _conclude(self, answer: dict[str, Any]) -> dict[str, Any]:
        if answer["skipped_facilities_count"]:
            self.log.warning(
                "A partial update: HealthEx skipped %s facilities of patient %s",
                answer["skipped_facilities_count"],
                self.patient_id,
            )
        if answer["message"] == IN_PROGRESS:
            self.log.info("HealthEx is refreshing patient %s, asked at %s", self.patient_id, answer["requested_at"])
            return answer
        needed = patient_action_needed(self.patient_id, answer["patient_action_needed_reason"])
        if self.on_patient_action == "fail":
            raise AirflowFailException(str(needed)) from needed
        if self.on_patient_action == "skip":
            raise AirflowSkipException(str(needed)) from needed
        self.log.warning("%s", needed)
        return answer


def assumed_update(
    project_id: str, patient_id: str, organization_id: str | None, requested_at: datetime
) -> dict[str, Any]:
    """Return the result of an update that may have started, with ``ambiguous`` to tell it from one that did."""
    update = PatientUpdate(
        project_id=project_id,
        patient_id=patient_id,
        organization_id=organization_id,
        message=IN_PROGRESS,
        patient_action_needed_reason=None,
        retrieval_id=None,
        skipped_facilities_count=0,
        counts={},
        requested_at=requested_at,
    )
    return {**update.to_dict(), "ambiguous": True}
