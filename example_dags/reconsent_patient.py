"""
Refresh one patient's health records; if the patient needs to act first, mail them a HealthEx link, and wait.

1. ``refresh`` requests an update of the patient's data, once.
2. ``next_step`` branches on the answer. In progress: ``arrival`` is next. Otherwise one of the tasks of step 3.
3. ``ask_to_consent`` and ``ask_to_sign_in`` mail the patient their HealthEx link. ``notify_coordinator`` mails the
   study if a mail to the patient would be wrong or no help: above all, if they have withdrawn.
4. ``arrival`` waits for data since the request: when the patient has acted HealthEx delivers without a new request.
5. ``read`` is your own work on the files.

The link lets its holder act as the patient. It is created and sent inside one task, and is in no XCom, log or rendered
field. Replace ``address_of`` and the text of the mails. More: docs/reconsent.md.
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

#: The next task, by HealthEx's reason. Any other reason, also a new one, goes to the coordinator.
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
            # The error's text may repeat the mail and the address: log its type alone.
            raise RuntimeError(f"The mail was not sent: {type(error).__name__}") from None


def mail_link(params: dict[str, Any], subject: str, text: str) -> None:
    """Create the patient's link and mail it: it is not returned, printed or stored."""
    external_id = params["external_id"]
    link = HealthExHook(params["healthex_conn_id"]).create_patient_link(external_id, project_id=params["project_id"])
    address = address_of(external_id)
    mask_secret(address)
    mail(params, address, subject, f'<p>{escape(text)}</p><p><a href="{escape(link)}">{escape(link)}</a></p>')


@dag(
    schedule=None,  # a run for each patient, with its params
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=100,  # patients at once; start one run a patient: two would wait for the same delivery
    default_args={"retries": 2, "retry_delay": RETRY_DELAY},
    params={
        "healthex_conn_id": Param("healthex_default", type="string", description="Airflow connection to HealthEx"),
        "aws_conn_id": Param("aws_default", type="string", description="Airflow connection to the bucket"),
        "smtp_conn_id": Param("smtp_default", type="string", description="Airflow connection to the mail server"),
        "project_id": Param("project-demo", type="string", description="HealthEx project (study)"),
        "patient_id": Param("patient-consent-expired", type="string", description="HealthEx's id of the patient"),
        "external_id": Param("ext-consent-expired", type="string", description="Your own id of the same patient"),
        "coordinator": Param(
            "coordinator@study.example", type="string", description="Gets the mail on a patient who needs a person"
        ),
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
        on_patient_action="return",  # return the answer with its reason instead of failing
    )

    @task.branch
    def next_step(update: dict[str, Any]) -> str:
        """Branch on the reason."""
        if update["message"] == "IN_PROGRESS_NO_ACTION_NEEDED":
            return "arrival"
        return OUTREACH.get(update["patient_action_needed_reason"], "notify_coordinator")

    # If one of these is killed after its mail went out, its retry sends a second mail. That does no harm.

    @task
    def ask_to_consent(params: Any = None) -> None:
        """Ask for the consent that is missing or has expired."""
        mail_link(params, "Your consent", "Please consent again to share your health records with our study:")

    @task
    def ask_to_sign_in(params: Any = None) -> None:
        """Ask for the sign-in that a health system requires."""
        mail_link(params, "Please sign in", "A health system asks you to sign in, so that our study can go on:")

    @task
    def notify_coordinator(params: Any = None, run_id: Any = None) -> None:
        """Mail the study HealthEx's id of the patient, and nothing else. The reason is in Airflow."""
        body = (
            f"HealthEx can't refresh {params['patient_id']} of {params['project_id']}. The patient was not mailed. "
            f"Airflow has the reason: task refresh of run {run_id}, XCom."
        )
        mail(params, params["coordinator"], "A patient of the study needs you", escape(body))

    arrival = HealthExDataArrivalSensor(
        task_id="arrival",
        update=refresh.output,  # requested_at stays that of the one request: no new one is needed
        on_patient_action="wait",
        trigger_rule="none_failed_min_one_success",
        bucket_name="{{ params.bucket }}",
        bucket_key="{{ params.path }}",
        external_id="{{ params.external_id }}",
        aws_conn_id="{{ params.aws_conn_id }}",
        poke_interval=POKE_INTERVAL,
        quiet_period=QUIET_PERIOD,
        timeout=TIMEOUT,
        soft_fail=True,  # a patient who does not act is no failure: the task is skipped
        deferrable=True,
    )

    @task
    def read(delivery: dict[str, Any]) -> int:
        """Work on the files of ``delivery["keys"]``. Return counts, never patients' data: XCom is stored and shown."""
        print(f"Read from S3: {delivery['object_count']} object(s)")
        return int(delivery["object_count"])

    step = next_step(refresh.output)
    step >> [ask_to_consent(), ask_to_sign_in(), notify_coordinator()] >> arrival
    step >> arrival
    read(arrival.output)


reconsent_patient()
