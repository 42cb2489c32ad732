"""
Refresh many patients' health records, and mail a HealthEx link to those who need to consent or sign in again.

1. ``patients`` reads the study's own list: HealthEx doesn't list patients whose consent has ended.
2. ``refresh`` requests all of them in one task. Its result lists those in progress, and those who need to act, and why.
3. ``arrival`` waits for those in progress with one deferred task, and ``report`` counts what arrived.
4. ``outreach`` mails the others their HealthEx link, in batches.
5. ``notify_coordinator`` sends one mail to the study, with the patients for whom a link is no help, those who could not
   be mailed, and those whose request failed.

The run does not wait for patients who were mailed: they take weeks. When one has acted HealthEx delivers without a new
request, and ``on_delivery`` processes it. A patient who has not acted by the next run is requested and mailed again.

A link lets its holder act as the patient. It is created and sent inside one task, and is in no XCom, log or rendered
field. Replace ``look_up``, ``patients`` and the text of the mails. More: docs/reconsent.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from html import escape
from typing import Any

from airflow.providers.common.compat.sdk import AirflowSkipException, Param, dag, mask_secret, task
from airflow.providers.smtp.hooks.smtp import SmtpHook

from airflow_provider_healthex.exceptions import (
    HealthExAuthenticationError,
    HealthExConnectionError,
    HealthExError,
    HealthExPermissionError,
    HealthExTokenError,
)
from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor

# HealthEx takes minutes to about an hour. The sandbox takes seconds, and the tests set these accordingly.
POKE_INTERVAL = float(os.environ.get("HEALTHEX_EXAMPLE_POKE_INTERVAL", 120))
QUIET_PERIOD = float(os.environ.get("HEALTHEX_EXAMPLE_QUIET_PERIOD", 300))
TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_TIMEOUT", 24 * 60 * 60)))
RETRY_DELAY = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_RETRY_DELAY", 5 * 60)))

# Patients a task: each task requests a token of its own, and Airflow maps at most 1,024 tasks.
BATCH = int(os.environ.get("HEALTHEX_EXAMPLE_BATCH", 50))

#: The text of the mail, by HealthEx's reason. Any other reason, also a new one, goes to the coordinator.
MAIL_TEXTS = {
    "CONSENT_EXPIRED": "Please consent again to share your health records with our study:",
    "CONSENT_NOT_FOUND": "Please consent again to share your health records with our study:",
    "AUTHENTICATION_EXPIRED": "A health system asks you to sign in, so that our study can go on:",
    "AUTHENTICATION_NEEDED_NEW_FACILITY": "A health system asks you to sign in, so that our study can go on:",
}


def look_up(patient_id: str) -> tuple[str, str]:
    """Return your own id of a patient, and their mail address. Replace this by a look-up in your registry."""
    external_id = patient_id.replace("patient-", "ext-", 1)
    return external_id, f"{external_id}@patients.example"


NO_RESULT = "refresh left no result: the list of patients was empty, or the task was killed (see its log)"

#: Errors that every patient of a batch would get.
FOR_EVERY_PATIENT = (HealthExAuthenticationError, HealthExConnectionError, HealthExPermissionError, HealthExTokenError)


def mail(params: dict[str, Any], to: str, subject: str, body: str) -> None:
    with SmtpHook(params["smtp_conn_id"]) as smtp:
        try:
            smtp.send_email_smtp(to=to, subject=subject, html_content=body)
        except Exception as error:
            # The error's text may repeat the mail and the address: log its type alone.
            raise RuntimeError(f"The mail was not sent: {type(error).__name__}") from None


def mail_link(params: dict[str, Any], patient_id: str, text: str) -> None:
    """Create the patient's link and mail it: it is not returned, printed or stored."""
    external_id, address = look_up(patient_id)
    mask_secret(address)
    link = HealthExHook(params["healthex_conn_id"]).create_patient_link(external_id, project_id=params["project_id"])
    body = f'<p>{escape(text)}</p><p><a href="{escape(link)}">{escape(link)}</a></p>'
    mail(params, address, "Our study needs you", body)


def mail_each(batch: list[dict[str, str]], params: dict[str, Any]) -> list[str]:
    """Mail each patient of a batch; return the ids of those who were mailed."""
    mailed = []
    for patient in batch:
        try:
            mail_link(params, patient["patient_id"], MAIL_TEXTS[patient["reason"]])
            mailed.append(patient["patient_id"])
        except HealthExError as error:
            print(f"No link for {patient['patient_id']}: {error}")
            if isinstance(error, FOR_EVERY_PATIENT):
                break
        except Exception as error:
            # The text of a look-up's error may hold the address.
            print(f"No mail to {patient['patient_id']}: {type(error).__name__}")
    return mailed


def for_coordinator(update: dict[str, Any], mailed: Iterable[list[str]]) -> dict[str, list[str]]:
    """Return the ids of patients who need a person, by cause."""
    done = {patient_id for batch in mailed for patient_id in batch}
    need_to_act = {each["patient_id"]: each["reason"] in MAIL_TEXTS for each in update["patient_action_needed"]}
    return {
        "HealthEx can't refresh these patients, and a link is no help. They were not mailed:": [
            patient_id for patient_id, link_helps in need_to_act.items() if not link_helps
        ],
        "These patients need to act, and could not be mailed:": [
            patient_id for patient_id, link_helps in need_to_act.items() if link_helps and patient_id not in done
        ],
        "These patients were not requested, or HealthEx answered with an error:": [
            *(each["patient_id"] for each in update["failed"]),
            *update.get("not_asked", []),
        ],
    }


def listed(title: str, patient_ids: list[str]) -> str:
    items = "".join(f"<li>{escape(each)}</li>" for each in patient_ids)
    return f"<p>{title}</p><ul>{items}</ul>" if patient_ids else ""


@dag(
    schedule=None,  # e.g. "@monthly"; docs/cluster.md says what unpausing then starts
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # two runs for one patient would wait for each other's delivery
    default_args={"retries": 2, "retry_delay": RETRY_DELAY},
    params={
        "healthex_conn_id": Param("healthex_default", type="string", description="Airflow connection to HealthEx"),
        "aws_conn_id": Param("aws_default", type="string", description="Airflow connection to the bucket"),
        "smtp_conn_id": Param("smtp_default", type="string", description="Airflow connection to the mail server"),
        "project_id": Param("project-demo", type="string", description="HealthEx project (study)"),
        "patient_ids": Param(
            ["patient-in-progress", "patient-consent-expired", "patient-new-facility", "patient-consent-revoked"],
            type="array",
            description="HealthEx's ids of the patients",
        ),
        "coordinator": Param(
            "coordinator@study.example", type="string", description="Gets the mail on patients who need a person"
        ),
        "bucket": Param("healthex-deliveries", type="string", description="Bucket HealthEx delivers to"),
        "path": Param(
            "d/{projectId}/{healthexPatientId}/",
            type="string",
            description="Path of the delivery; may use {orgId}, {projectId}, {healthexPatientId}",
        ),
    },
    tags=["healthex"],
    doc_md=__doc__,
)
def reconsent_cohort() -> None:
    @task
    def patients(params: Any = None) -> list[str]:
        """List the patients. Replace this by your registry, where they don't fit a parameter."""
        return list(params["patient_ids"])

    refresh = HealthExUpdateCohortOperator(
        task_id="refresh",
        patient_ids=patients(),
        project_id="{{ params.project_id }}",
        healthex_conn_id="{{ params.healthex_conn_id }}",
        max_failures=0.2,
    )

    arrival = HealthExCohortArrivalSensor(
        task_id="arrival",
        update=refresh.output,
        bucket_name="{{ params.bucket }}",
        bucket_key="{{ params.path }}",
        aws_conn_id="{{ params.aws_conn_id }}",
        min_fraction=0.9,  # without changes HealthEx may deliver nothing
        poke_interval=POKE_INTERVAL,
        quiet_period=QUIET_PERIOD,
        timeout=TIMEOUT,
        deferrable=True,
    )

    @task
    def report(arrived: dict[str, Any]) -> dict[str, int]:
        """Count what arrived; on_delivery processes it."""
        counts = {"arrived": arrived["arrived_count"], "missing": arrived["missing_count"]}
        print(f"In progress: {counts}")
        return counts

    # A refresh without a patient in progress fails, for example when all need to act. Its result is still there.
    @task(trigger_rule="all_done")
    def batches(update: dict[str, Any] | None) -> list[list[dict[str, str]]]:
        """List the patients whom a link helps, in batches."""
        if not update:
            raise AirflowSkipException(NO_RESULT)
        to_mail = [each for each in update["patient_action_needed"] if each["reason"] in MAIL_TEXTS]
        return [to_mail[start : start + BATCH] for start in range(0, len(to_mail), BATCH)]

    @task
    def outreach(batch: list[dict[str, str]], params: Any = None) -> list[str]:
        """
        Mail a batch.

        A bad address doesn't stop the rest of the batch. The task fails, and is retried, only if no patient was
        mailed, so that a retry mails no patient twice. The retry of a killed task may, which does no harm.
        """
        mailed = mail_each(batch, params)
        if not mailed:
            raise RuntimeError(f"No patient of a batch of {len(batch)} was mailed: see the log above")
        return mailed

    @task(trigger_rule="all_done")
    def notify_coordinator(update: dict[str, Any] | None, mailed: Any, params: Any = None, run_id: Any = None) -> None:
        """Mail the study HealthEx's ids, and nothing else of the patients. The reasons are in Airflow."""
        if not update:
            raise AirflowSkipException(NO_RESULT)
        body = "".join(
            listed(title, patient_ids) for title, patient_ids in for_coordinator(update, mailed or ()).items()
        )
        if not body:
            raise AirflowSkipException("No patient needs the coordinator")
        reasons = f"<p>Airflow has the reasons: task refresh of run {escape(run_id)}, XCom.</p>"
        mail(params, params["coordinator"], "Patients of the study need you", body + reasons)

    report(arrival.output)
    notify_coordinator(refresh.output, outreach.expand(batch=batches(refresh.output)))


reconsent_cohort()
