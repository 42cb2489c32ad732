"""
Refresh many patients' health records, go on with those in progress, and ask the others to consent or sign in again.

1. ``patients`` reads the study's own list: HealthEx doesn't list those whose consent has ended.
2. ``refresh`` asks for all of them in one task and says of each whether they are in progress or must act, and why.
3. ``arrival`` waits for those in progress with one deferred task, and ``report`` says how many came.
4. ``outreach`` mails the others their HealthEx link, in batches.
5. ``tell_coordinator`` writes one mail to the study: whom no link helps, who could not be written to, and whom HealthEx
   could not be asked for.

The run does not wait for those who were asked: patients take weeks. When one has acted HealthEx delivers, unasked, and
``on_delivery`` works on what comes, theirs and everybody's. Who has not acted by the next run is asked again.

Whoever holds a link acts as the patient. Links are made and sent inside one task, and are in no XCom, log or rendered
field. What to replace: ``look_up``, ``patients`` and the words of the mails. More: docs/reconsent.md.
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

# Patients a task: it has one token for all of them, and Airflow maps at most 1,024 tasks.
BATCH = int(os.environ.get("HEALTHEX_EXAMPLE_BATCH", 50))

#: What to ask for, by HealthEx's reason. Whatever is not here is for people: also a reason that is new.
REQUESTS = {
    "CONSENT_EXPIRED": "Please consent again to share your health records with our study:",
    "CONSENT_NOT_FOUND": "Please consent again to share your health records with our study:",
    "AUTHENTICATION_EXPIRED": "A health system asks you to sign in, so that our study can go on:",
    "AUTHENTICATION_NEEDED_NEW_FACILITY": "A health system asks you to sign in, so that our study can go on:",
}


def look_up(patient_id: str) -> tuple[str, str]:
    """Return your own id of a patient, and their mail address. Replace this by a look-up in your registry."""
    external_id = patient_id.replace("patient-", "ext-", 1)
    return external_id, f"{external_id}@patients.example"


NO_RESULT = "refresh left no result: there was nobody to ask for, or it died, see its log."

#: What the next patient would meet, too.
FOR_EVERYBODY = (HealthExAuthenticationError, HealthExConnectionError, HealthExPermissionError, HealthExTokenError)


def mail(params: dict[str, Any], to: str, subject: str, body: str) -> None:
    with SmtpHook(params["smtp_conn_id"]) as smtp:
        try:
            smtp.send_email_smtp(to=to, subject=subject, html_content=body)
        except Exception as error:
            # What goes wrong with a mail may repeat it, and the address: its kind says enough.
            raise RuntimeError(f"The mail was not sent: {type(error).__name__}") from None


def mail_link(params: dict[str, Any], patient_id: str, text: str) -> None:
    """Make the patient's link and mail it, at once: it is not returned, printed or stored."""
    external_id, address = look_up(patient_id)
    mask_secret(address)
    link = HealthExHook(params["healthex_conn_id"]).create_patient_link(external_id, project_id=params["project_id"])
    body = f'<p>{escape(text)}</p><p><a href="{escape(link)}">{escape(link)}</a></p>'
    mail(params, address, "Our study needs you", body)


def write_to_each(batch: list[dict[str, str]], params: dict[str, Any]) -> list[str]:
    """Mail each of a batch; return the ids of whom it went to."""
    written = []
    for patient in batch:
        try:
            mail_link(params, patient["patient_id"], REQUESTS[patient["reason"]])
            written.append(patient["patient_id"])
        except HealthExError as error:
            print(f"No link for {patient['patient_id']}: {error}")
            if isinstance(error, FOR_EVERYBODY):
                break
        except Exception as error:
            # A look-up's error may tell of the patient, too.
            print(f"{patient['patient_id']} could not be written to: {type(error).__name__}")
    return written


def for_people(update: dict[str, Any], written: Iterable[list[str]]) -> dict[str, list[str]]:
    """Return whom people must look after, by what has happened."""
    done = {patient_id for batch in written for patient_id in batch}
    must_act = {each["patient_id"]: each["reason"] in REQUESTS for each in update["patient_action_needed"]}
    return {
        "HealthEx can't refresh these, and nobody has written to them:": [
            patient_id for patient_id, link_helps in must_act.items() if not link_helps
        ],
        "These must act, and could not be written to:": [
            patient_id for patient_id, link_helps in must_act.items() if link_helps and patient_id not in done
        ],
        "HealthEx could not be asked for these, or answered with an error:": [
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
        "coordinator": Param("coordinator@study.example", type="string", description="Who is told what needs people"),
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
    def patients(params: dict[str, Any]) -> list[str]:
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
        min_fraction=0.9,  # where nothing has changed nothing may come
        poke_interval=POKE_INTERVAL,
        quiet_period=QUIET_PERIOD,
        timeout=TIMEOUT,
        deferrable=True,
    )

    @task
    def report(arrived: dict[str, Any]) -> dict[str, int]:
        """Say who came; the work on their data is on_delivery's."""
        counts = {"arrived": arrived["arrived_count"], "missing": arrived["missing_count"]}
        print(f"In progress: {counts}")
        return counts

    # A refresh fails where nobody is in progress, which is when all must act. Its result is there all the same.
    @task(trigger_rule="all_done")
    def batches(update: dict[str, Any] | None) -> list[list[dict[str, str]]]:
        """List whom a link helps, in batches."""
        if not update:
            raise AirflowSkipException(NO_RESULT)
        asked = [each for each in update["patient_action_needed"] if each["reason"] in REQUESTS]
        return [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]

    @task
    def outreach(batch: list[dict[str, str]], params: dict[str, Any]) -> list[str]:
        """
        Mail a batch.

        One bad address stops nobody else. It fails, and is tried again, only where nobody was written to: a retry
        mails nobody twice. That of a killed task may, which does no harm.
        """
        written = write_to_each(batch, params)
        if not written:
            raise RuntimeError(f"None of {len(batch)} patients could be written to.")
        return written

    @task(trigger_rule="all_done")
    def tell_coordinator(
        update: dict[str, Any] | None, written: Iterable[list[str]] | None, params: dict[str, Any], run_id: str
    ) -> None:
        """Write to the study, of patients nothing but HealthEx's ids. The reasons are in Airflow."""
        if not update:
            raise AirflowSkipException(NO_RESULT)
        body = "".join(listed(title, patient_ids) for title, patient_ids in for_people(update, written or ()).items())
        if not body:
            raise AirflowSkipException("Nobody needs the coordinator.")
        reasons = f"<p>Airflow has the reasons: task refresh of run {escape(run_id)}, XCom.</p>"
        mail(params, params["coordinator"], "Patients of the study need you", body + reasons)

    report(arrival.output)
    tell_coordinator(refresh.output, outreach.expand(batch=batches(refresh.output)))


reconsent_cohort()
