"""
Refresh one patient's health records, and where HealthEx needs the patient first, ask them, and wait on.

1. ``refresh`` asks HealthEx to update the patient's data, once.
2. ``next_step`` looks at the answer. In progress: on to ``arrival``. Otherwise one of the next three goes first.
3. ``ask_to_consent`` and ``ask_to_sign_in`` mail the patient their HealthEx link; ``tell_coordinator`` writes to the
   study, where a mail to the patient would be wrong or no use: above all, where they have withdrawn.
4. ``arrival`` waits for data newer than the request: when the patient has acted HealthEx delivers, unasked.
5. ``read`` is your own work on what came.

Whoever holds the link acts as the patient. It is made and sent inside one task, and is in no XCom, log or rendered
field. What to replace: ``address_of`` and the words of the mails. More: docs/reconsent.md.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from html import escape
from typing import Any

from airflow.providers.common.compat.sdk import Param, dag, mask_secret, task
from airflow.providers.smtp.hooks.smtp import SmtpHook

from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

# A patient takes days. The sandbox takes seconds, and the tests set these accordingly.
POKE_INTERVAL = float(os.environ.get("HEALTHEX_EXAMPLE_POKE_INTERVAL", 600))
QUIET_PERIOD = float(os.environ.get("HEALTHEX_EXAMPLE_QUIET_PERIOD", 300))
TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_TIMEOUT", 30 * 24 * 60 * 60)))
RETRY_DELAY = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_RETRY_DELAY", 5 * 60)))

#: Who goes first, by HealthEx's reason. Whatever is not here is for people: also a reason that is new.
OUTREACH = {
    "CONSENT_EXPIRED": "ask_to_consent",
    "CONSENT_NOT_FOUND": "ask_to_consent",
    "AUTHENTICATION_EXPIRED": "ask_to_sign_in",
    "AUTHENTICATION_NEEDED_NEW_FACILITY": "ask_to_sign_in",
}


def address_of(external_id: str) -> str:
    """Return a patient's mail address. Replace this by a look-up in your registry: params and XCom are stored."""
    return f"{external_id}@patients.example"


def mail(params: dict[str, Any], to: str, subject: str, body: str) -> None:
    with SmtpHook(params["smtp_conn_id"]) as smtp:
        try:
            smtp.send_email_smtp(to=to, subject=subject, html_content=body)
        except Exception as error:
            # What goes wrong with a mail may repeat it, and the address: its kind says enough.
            raise RuntimeError(f"The mail was not sent: {type(error).__name__}") from None


def mail_link(params: dict[str, Any], subject: str, text: str) -> None:
    """Make the patient's link and mail it, at once: it is not returned, printed or stored."""
    external_id = params["external_id"]
    link = HealthExHook(params["healthex_conn_id"]).create_patient_link(external_id, project_id=params["project_id"])
    address = address_of(external_id)
    mask_secret(address)
    mail(params, address, subject, f'<p>{escape(text)}</p><p><a href="{escape(link)}">{escape(link)}</a></p>')


@dag(
    schedule=None,  # a run for each patient, with its params
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=100,  # patients waited for at once; one run a patient: two would wait for the same delivery
    default_args={"retries": 2, "retry_delay": RETRY_DELAY},
    params={
        "healthex_conn_id": Param("healthex_default", type="string", description="Airflow connection to HealthEx"),
        "aws_conn_id": Param("aws_default", type="string", description="Airflow connection to the bucket"),
        "smtp_conn_id": Param("smtp_default", type="string", description="Airflow connection to the mail server"),
        "project_id": Param("project-demo", type="string", description="HealthEx project (study)"),
        "patient_id": Param("patient-consent-expired", type="string", description="HealthEx's id of the patient"),
        "external_id": Param("ext-consent-expired", type="string", description="Your own id of the same patient"),
        "coordinator": Param("coordinator@study.example", type="string", description="Who is told what needs people"),
        "bucket": Param("healthex-deliveries", type="string", description="Bucket HealthEx delivers to"),
        "path": Param(
            "d/{projectId}/{healthexPatientId}/",
            type="string",
            description="Path of the delivery; may use {orgId}, {projectId}, {healthexPatientId}, {externalId}",
        ),
    },
    tags=["healthex"],
    doc_md=__doc__,
)
def reconsent_patient() -> None:
    refresh = HealthExUpdatePatientOperator(
        task_id="refresh",
        patient_id="{{ params.patient_id }}",
        project_id="{{ params.project_id }}",
        healthex_conn_id="{{ params.healthex_conn_id }}",
        on_patient_action="return",  # the answer with its reason, rather than a failure
    )

    @task.branch
    def next_step(update: dict[str, Any]) -> str:
        """Choose by the reason."""
        if update["message"] == "IN_PROGRESS_NO_ACTION_NEEDED":
            return "arrival"
        return OUTREACH.get(update["patient_action_needed_reason"], "tell_coordinator")

    # A retry of these may send a second mail, where the first went out and the task was killed. That does no harm.

    @task
    def ask_to_consent(params: dict[str, Any]) -> None:
        """Ask for the consent that is missing or has expired."""
        mail_link(params, "Your consent", "Please consent again to share your health records with our study:")

    @task
    def ask_to_sign_in(params: dict[str, Any]) -> None:
        """Ask for the sign-in that a health system wants."""
        mail_link(params, "Please sign in", "A health system asks you to sign in, so that our study can go on:")

    @task
    def tell_coordinator(params: dict[str, Any], run_id: str) -> None:
        """Write to the study; no link, and of the patient nothing but HealthEx's id. The reason is in Airflow."""
        body = (
            f"HealthEx can't refresh {params['patient_id']} of {params['project_id']}, and nobody has written to them. "
            f"Airflow has the reason: task refresh of run {run_id}, XCom."
        )
        mail(params, params["coordinator"], "A patient of the study needs you", escape(body))

    arrival = HealthExDataArrivalSensor(
        task_id="arrival",
        update=refresh.output,  # its request's time stays the baseline: no new request is needed
        on_patient_action="wait",
        trigger_rule="none_failed_min_one_success",
        bucket_name="{{ params.bucket }}",
        bucket_key="{{ params.path }}",
        external_id="{{ params.external_id }}",
        aws_conn_id="{{ params.aws_conn_id }}",
        poke_interval=POKE_INTERVAL,
        quiet_period=QUIET_PERIOD,
        timeout=TIMEOUT,
        soft_fail=True,  # a patient who does not act is an outcome and no failure: it ends as skipped
        deferrable=True,
    )

    @task
    def read(delivery: dict[str, Any]) -> int:
        """Work on the files of ``delivery["keys"]``. Return counts, never patients' data: XCom is stored and shown."""
        print(f"Read from S3: {delivery['object_count']} object(s)")
        return int(delivery["object_count"])

    step = next_step(refresh.output)
    step >> [ask_to_consent(), ask_to_sign_in(), tell_coordinator()] >> arrival
    step >> arrival
    read(arrival.output)


reconsent_patient()
