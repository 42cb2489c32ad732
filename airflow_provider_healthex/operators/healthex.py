"""The operators that users import; here the one for one patient, which is requested once and not again by accident."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, conf

from airflow_provider_healthex.arguments import boolean, one_of
from airflow_provider_healthex.client import IN_PROGRESS, PatientUpdate
from airflow_provider_healthex.client.calls import identifier
from airflow_provider_healthex.client.models import whole_seconds
from airflow_provider_healthex.client.patient_action import patient_action_needed
from airflow_provider_healthex.exceptions import HealthExError, HealthExUpdateAmbiguousError
from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.links.healthex import HealthExProjectLink
from airflow_provider_healthex.metrics import count_request
from airflow_provider_healthex.operators.base import (
    ON_AMBIGUOUS,
    HealthExOperator,
    fail_on_permanent_errors,
    optional_flag,
)
from airflow_provider_healthex.operators.cohort import HealthExUpdateCohortOperator
from airflow_provider_healthex.operators.consents import (
    HealthExListConsentedPatientsOperator,
    HealthExListStalePatientsOperator,
)
from airflow_provider_healthex.operators.journal import IF_JUST_CLEARED, Journal
from airflow_provider_healthex.operators.outcomes import AMBIGUOUS, FAILED, PatientOutcome
from airflow_provider_healthex.operators.waiting import check_wait, leave_time, wait
from airflow_provider_healthex.sensors.checks import plain_seconds
from airflow_provider_healthex.sensors.reports import operator_lineage
from airflow_provider_healthex.sensors.request import RULE_FIELDS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

__all__ = [
    "HealthExListConsentedPatientsOperator",
    "HealthExListStalePatientsOperator",
    "HealthExUpdateCohortOperator",
    "HealthExUpdatePatientOperator",
]

ON_PATIENT_ACTION = ("fail", "skip", "return")


class HealthExUpdatePatientOperator(HealthExOperator):
    """
    Requests a refresh of one patient's data, and returns HealthEx's answer; or waits for the delivery, too.

    HealthEx answers at once and retrieves in the background, for minutes to about an hour (docs.healthex.io). Give
    this task's output to a `HealthExDataArrivalSensor`, which
    waits for objects modified after ``requested_at``. For one key of it, as in ``refresh.output["patient_id"]``, set
    Airflow's ``multiple_outputs=True``.

    With ``wait_for_arrival``, this task itself waits in S3, by that sensor's decision. A retry goes on waiting with the
    same ``requested_at``, and requests nothing (Airflow >= 3.3, ``durable``). Otherwise any failure after HealthEx's
    answer is final. **A killed process looks like one that never began: there, Airflow retries it, and it requests the
    update again.** Set ``retries=0`` to exclude that, or use the sensor, which can also be cleared by itself.

    HealthEx has no idempotency key and bills each retrieval, so an ambiguous update is never requested again by
    accident. See ``on_ambiguous`` and ``durable``.

    :param patient_id: HealthEx's id of the patient (templated). It is shown in XCom and in logs.
    :param project_id: the project, default the connection's (templated).
    :param skip_interactive: ``skipInteractive`` of the API; None: not sent (templated; also ``"true"``, ``"false"``).
    :param on_patient_action: what to do when HealthEx answers ``PATIENT_ACTION_NEEDED``: ``fail`` (not retried),
        ``skip``, or ``return`` the answer, for branching. In a mapped operator use ``return``, and let the mapped
        sensor ``skip``: where one mapped task is skipped, Airflow's default trigger rule skips every sensor.
    :param on_ambiguous: what to do when nobody knows whether HealthEx accepted the update: ``fail`` (not retried),
        ``retry`` (Airflow may request it again, which may bill a second retrieval), or ``assume_started``: return it
        as in progress with ``"ambiguous": True``; the sensor then shows whether data arrives.
    :param durable: on Airflow >= 3.3, keep intent and answer in the task's state store, so that an automatic retry
        resumes: an accepted update is returned, an ambiguous one is handled by ``on_ambiguous``. A clear by a person
        starts over. No effect below 3.3.
    :param healthex_conn_id: the Airflow connection (templated).
    :param wait_for_arrival: wait until the delivery has arrived in S3. The parameters below are for that alone, and
        mean what they mean to the sensor.
    :param bucket_key: where HealthEx delivers: required with ``wait_for_arrival`` (templated).
    :param bucket_name: the bucket, where ``bucket_key`` is no URL (templated).
    :param external_id: the id your side gave the patient, for ``{externalId}`` (templated).
    :param org_id: the organization, for ``{orgId}``; by default that of the answer (templated).
    :param min_objects: fresh objects that are required (templated).
    :param marker: the name or ending of the file that ends a delivery (templated).
    :param quiet_period: seconds, or a timedelta, since the newest object; 300 by default (templated).
    :param clock_skew: seconds, or a timedelta, by which S3's clock may be behind HealthEx's; 2 by default (templated).
    :param manifest_key: a key to write a JSON line for each object to (templated).
    :param wildcard_match: read ``bucket_key`` as a glob.
    :param deferrable: wait on the triggerer. Without it, the wait takes a worker.
    :param aws_conn_id: the AWS connection (templated).
    :param poke_interval: seconds, or a timedelta, between two pokes; 60 by default.
    :param timeout: seconds, or a timedelta, until the wait fails, from its start in each try; 6 hours by default.
    :returns: ``project_id``, ``patient_id``, ``organization_id``, ``message``, ``patient_action_needed_reason``,
        ``retrieval_id``, ``skipped_facilities_count``, ``counts``, ``requested_at``. With ``wait_for_arrival`` the
        sensor's result, and the answer under the XCom key ``update``; the answer alone where the patient needs to act
        (``on_patient_action="return"``).
    :raises AirflowFailException: from the typed error, for permanent errors: 401, 403, 404, other 4xx, an unusable
        connection, token or argument, a patient who needs to act, an ambiguous update; and for any error of the wait,
        where a retry would request again.
    :raises AirflowSensorTimeout: with ``wait_for_arrival``, when nothing arrived in time; not retried.
    :raises HealthExConnectionError: the request never reached HealthEx; Airflow may retry.
    :raises HealthExRateLimitError: a 429 outlasted the client's own retries; Airflow may retry.
    :raises HealthExServerError: likewise a 503 with Retry-After.
    :raises HealthExUpdateAmbiguousError: with ``on_ambiguous="retry"``; Airflow may retry.
    :raises StateStoreError: the state store refused the intent, and nothing was sent; Airflow may retry.
    """

    template_fields: Sequence[str] = (
        "patient_id",
        "project_id",
        "skip_interactive",
        "healthex_conn_id",
        "bucket_key",
        "bucket_name",
        "external_id",
        "org_id",
        "manifest_key",
        "aws_conn_id",
        *RULE_FIELDS,
    )
    operator_extra_links = (HealthExProjectLink(),)
    ui_color = "#d9ebf7"

    patient_id: Any  # text by the time `execute` runs
    #: Where Airflow's own is longer, for a resumed task.
    own_execution_timeout: timedelta | None = None
    #: That waits, with ``wait_for_arrival``.
    sensor: Any = None

    def __init__(
        self,
        *,
        patient_id: str | XComArg,
        project_id: str | XComArg | None = None,
        skip_interactive: bool | str | XComArg | None = None,
        on_patient_action: str = "fail",
        on_ambiguous: str = "fail",
        durable: bool = True,
        healthex_conn_id: str | XComArg = HealthExHook.default_conn_name,
        wait_for_arrival: bool = False,
        bucket_key: str | list[str] | XComArg | None = None,
        bucket_name: str | XComArg | None = None,
        external_id: str | XComArg | None = None,
        org_id: str | XComArg | None = None,
        min_objects: int | str | XComArg = 1,
        marker: str | XComArg | None = None,
        quiet_period: timedelta | float | str | XComArg = 300,
        clock_skew: timedelta | float | str | XComArg = 2,
        manifest_key: str | XComArg | None = None,
        wildcard_match: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        aws_conn_id: str | None = "aws_default",
        poke_interval: timedelta | float = 60,
        timeout: timedelta | float = 6 * 60 * 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.is_known_when_parsed(patient_id):
            identifier("patient_id", patient_id)
        self.check_project_id(project_id)
        if self.is_known_when_parsed(skip_interactive):
            optional_flag("skip_interactive", skip_interactive)
        self.patient_id = patient_id
        self.project_id = project_id
        self.skip_interactive = skip_interactive
        self.on_patient_action = one_of("on_patient_action", on_patient_action, ON_PATIENT_ACTION)
        self.on_ambiguous = one_of("on_ambiguous", on_ambiguous, ON_AMBIGUOUS)
        self.durable = boolean("durable", durable)
        self.healthex_conn_id = healthex_conn_id
        self.wait_for_arrival = boolean("wait_for_arrival", wait_for_arrival)
        self.bucket_key: Any = bucket_key
        self.bucket_name: Any = bucket_name
        self.external_id: Any = external_id
        self.org_id: Any = org_id
        self.min_objects = min_objects
        self.marker = marker
        self.quiet_period = plain_seconds(quiet_period)
        self.clock_skew = plain_seconds(clock_skew)
        self.manifest_key: Any = manifest_key
        self.wildcard_match = wildcard_match
        self.deferrable = deferrable
        self.aws_conn_id: Any = aws_conn_id
        self.poke_interval = plain_seconds(poke_interval)
        self.timeout = plain_seconds(timeout)
        if wait_for_arrival and self.is_known_when_parsed(None):
            check_wait(self)

    def pre_execute(self, context: Any) -> None:
        """Leave a resumed task the time to conclude."""
        super().pre_execute(context)
        if self.wait_for_arrival:
            self.own_execution_timeout = leave_time(self, context)

    def execute(self, context: Context) -> dict[str, Any]:
        """Request the update, unless an earlier try of this task has; and wait, where that is wanted."""
        with fail_on_permanent_errors(self.on_ambiguous):
            if self.wait_for_arrival:
                check_wait(self)
            answer = self._answer(context)
        answer = self._conclude(answer)
        if not self.wait_for_arrival or answer["message"] != IN_PROGRESS:
            return answer
        result: dict[str, Any] = wait(self, context, answer, lambda sensor: sensor.wait(context))
        return result

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Conclude what the triggerer saw."""
        return wait(self, context, None, lambda sensor: sensor.resume_execution(next_method, next_kwargs, context))

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return the sensor's output data set, for the OpenLineage provider, where that is installed."""
        return operator_lineage(None) if self.sensor is None else self.sensor.get_openlineage_facets_on_complete(None)

    def _answer(self, context: Context) -> dict[str, Any]:
        patient_id = identifier("patient_id", self.patient_id)
        skip_interactive = optional_flag("skip_interactive", self.skip_interactive)
        project_id = self.resolve_project_id()
        journal = Journal.open(context, project_id, durable=self.durable)
        earlier = journal.outcome(patient_id)
        if earlier.answer:
            self.log.info("Patient '%s' was requested by an earlier try of this task: returning its answer", patient_id)
            if journal.run_was_cleared:
                self.log.warning("%s", IF_JUST_CLEARED)
            answer: dict[str, Any] = json.loads(earlier.answer)
            return answer
        ambiguous_since = journal.ambiguous_since(patient_id)
        if ambiguous_since and self.on_ambiguous != "retry":
            requested_at = datetime.fromisoformat(ambiguous_since)
            error = HealthExUpdateAmbiguousError(
                f"Patient '{patient_id}' may have been requested at {ambiguous_since}: an earlier try of this task "
                "stored that it was about to send the request, and ended before an answer was stored. "
                + (IF_JUST_CLEARED if journal.run_was_cleared else "To request it again, clear this task."),
                requested_at=requested_at,
            )
            return self._handle_ambiguous(error, requested_at)
        return self._request(journal, project_id, patient_id, skip_interactive)

    def _request(
        self, journal: Journal, project_id: str, patient_id: str, skip_interactive: bool | None
    ) -> dict[str, Any]:
        client = self.hook.get_conn()
        client.check_token()
        ambiguous_since = journal.ambiguous_since(patient_id)
        self.log.info("Requesting an update of patient '%s'", patient_id)
        try:
            update = client.update_patient(
                project_id, patient_id, skip_interactive=skip_interactive, checkpoint=journal.checkpoint
            )
        except HealthExUpdateAmbiguousError as error:
            requested_at = error.requested_at or datetime.now(timezone.utc)
            journal.record(PatientOutcome.ambiguous(patient_id, ambiguous_since or whole_seconds(requested_at)))
            journal.checkpoint()
            count_request(AMBIGUOUS)
            return self._handle_ambiguous(error, requested_at)
        except HealthExError:
            journal.checkpoint()
            count_request(FAILED)
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # execution_timeout, or Airflow that ends the task
            journal.break_off()
            if journal.is_kept or self.on_ambiguous == "retry" or not journal.ambiguous_since(patient_id):
                raise
            raise AirflowFailException(
                f"{type(error).__name__}: {error}. Not retried: HealthEx may have accepted the update of patient "
                f"'{patient_id}', and this task would request it again."
            ) from error
        answer = update.to_dict()
        answer["requested_at"] = ambiguous_since or answer["requested_at"]
        text = json.dumps(answer)
        # Logged before it is stored: the answer must survive a store that fails, or the end of this process.
        self.log.info("HealthEx answered for patient '%s': %s", patient_id, text)
        outcome = PatientOutcome.of(update, ambiguous_since)
        journal.record(replace(outcome, answer=text))
        journal.checkpoint()
        count_request(outcome.kind)
        return answer

    def _handle_ambiguous(self, error: HealthExUpdateAmbiguousError, requested_at: datetime) -> dict[str, Any]:
        if self.on_ambiguous != "assume_started":
            raise error
        self.log.warning("%s Assumed to have started (on_ambiguous='assume_started')", error)
        update = PatientUpdate(
            project_id=self.resolve_project_id(),
            patient_id=self.patient_id,
            organization_id=self._organization_id(),
            message=IN_PROGRESS,
            patient_action_needed_reason=None,
            retrieval_id=None,
            skipped_facilities_count=0,
            counts={},
            requested_at=requested_at,
        )
        return {**update.to_dict(), "ambiguous": True}

    def _organization_id(self) -> str | None:
        """Return the organization; None where the token has expired meanwhile, which must not fail the task."""
        try:
            return self.hook.get_conn().organization_id
        except HealthExError as error:
            self.log.warning("The organization is unknown: %s", error)
            return None

    def _conclude(self, answer: dict[str, Any]) -> dict[str, Any]:
        skipped = answer["skipped_facilities_count"]
        if skipped:
            self.log.warning("Partial update of patient '%s': HealthEx skipped %s facilities", self.patient_id, skipped)
        if answer["message"] == IN_PROGRESS:
            self.log.info("Patient '%s' is in progress, requested at %s", self.patient_id, answer["requested_at"])
            return answer
        needed = patient_action_needed(self.patient_id, answer["patient_action_needed_reason"])
        if self.on_patient_action == "fail":
            raise AirflowFailException(str(needed)) from needed
        if self.on_patient_action == "skip":
            raise AirflowSkipException(str(needed)) from needed
        self.log.warning("%s", needed)
        return answer
