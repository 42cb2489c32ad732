"""
Refresh one patient's health records; if the patient needs to act first, wait for the coordinator's confirmation.

1. ``refresh`` requests an update of the patient's data, once.
2. ``outreach`` runs if the patient needs to act: it mails them their HealthEx link, or mails the coordinator if a link
   would be wrong or no help.
3. ``confirm`` puts a question into Airflow's UI, under *Required Actions*: has the patient acted? It waits without a
   worker. Without an answer it takes "Give up" after two weeks.
4. ``arrival`` waits for data since the request, and ``read`` is your own work on it; or ``give_up`` ends the run.

Needs Airflow 3.1 and ``apache-airflow-providers-standard`` 1.12.2 (for ``response_timeout``). Airflow stores the
question and shows it to everyone who may see the run: it names neither the patient nor the reason, and holds no link.
Replace ``address_of`` and the texts. More: docs/reconsent.md.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from html import escape
from typing import Any

from airflow.providers.common.compat.sdk import AirflowOptionalProviderFeatureException, Param, dag, mask_secret, task
from airflow.providers.smtp.hooks.smtp import SmtpHook

from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

try:
    from airflow.providers.standard.operators.hitl import HITLBranchOperator
except (ImportError, AirflowOptionalProviderFeatureException):  # Airflow below 3.1 has no such operator
    HITLBranchOperator = None  # type: ignore[assignment, misc]

# HealthEx takes minutes to about an hour, a patient days. The tests set these accordingly.
POKE_INTERVAL = float(os.environ.get("HEALTHEX_EXAMPLE_POKE_INTERVAL", 60))
QUIET_PERIOD = float(os.environ.get("HEALTHEX_EXAMPLE_QUIET_PERIOD", 300))
TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_TIMEOUT", 24 * 60 * 60)))
RESPONSE_TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_RESPONSE_TIMEOUT", 14 * 24 * 60 * 60)))
RETRY_DELAY = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_RETRY_DELAY", 5 * 60)))

#: The reasons for which the patient's link helps. Any other, also a new one, goes to the coordinator.
LINK_HELPS = (
    "CONSENT_EXPIRED",
    "CONSENT_NOT_FOUND",
    "AUTHENTICATION_EXPIRED",
    "AUTHENTICATION_NEEDED_NEW_FACILITY",
)


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


if HITLBranchOperator is not None:

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
    def reconsent_with_approval() -> None:
        refresh = HealthExUpdatePatientOperator(
            task_id="refresh",
            patient_id="{{ params.patient_id }}",
            project_id="{{ params.project_id }}",
            healthex_conn_id="{{ params.healthex_conn_id }}",
            on_patient_action="return",  # return the answer with its reason instead of failing
        )

        @task.branch
        def next_step(update: dict[str, Any]) -> str:
            return "arrival" if update["message"] == "IN_PROGRESS_NO_ACTION_NEEDED" else "outreach"

        @task
        def outreach(update: dict[str, Any], params: Any = None, run_id: Any = None) -> None:
            """Mail the patient or the coordinator. The retry of a killed task may do so twice, which does no harm."""
            if update["patient_action_needed_reason"] not in LINK_HELPS:
                body = escape(
                    f"HealthEx can't refresh {params['patient_id']} of {params['project_id']}. The patient was not "
                    f"mailed. Airflow has the reason: task refresh of run {run_id}, XCom."
                )
                mail(params, params["coordinator"], "A patient of the study needs you", body)
                return
            # The link lets its holder act as the patient: it is not returned, printed or stored.
            link = HealthExHook(params["healthex_conn_id"]).create_patient_link(
                params["external_id"], project_id=params["project_id"]
            )
            address = address_of(params["external_id"])
            mask_secret(address)
            text = "Please sign in, and consent again if you are asked to, so that our study can go on:"
            body = f'<p>{text}</p><p><a href="{escape(link)}">{escape(link)}</a></p>'
            mail(params, address, "Our study needs you", body)

        confirm = HITLBranchOperator(
            task_id="confirm",
            subject="Has the patient of this run acted?",
            body=(
                "HealthEx can't refresh the patient's data until then. A mail was sent to the patient or to the study. "
                'When the patient has acted, choose "The patient has acted", and the run waits for the data. '
                "The run's configuration names the patient: tab Details of the run."
            ),
            options=["The patient has acted", "Give up"],
            options_mapping={"The patient has acted": "arrival", "Give up": "give_up"},
            defaults="Give up",
            response_timeout=RESPONSE_TIMEOUT,
        )
        # Airflow 3.1 would show the run's params with the question, and store them with it.
        confirm.params = {}  # type: ignore[assignment]

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
            deferrable=True,
        )

        @task
        def read(delivery: dict[str, Any]) -> int:
            """Work on the files of ``delivery["keys"]``. Return counts: XCom is stored and shown."""
            print(f"Read from S3: {delivery['object_count']} object(s)")
            return int(delivery["object_count"])

        @task
        def give_up() -> None:
            """Do what your study does about a patient who does not act."""
            print("Given up: the patient's data was not refreshed.")

        step = next_step(refresh.output)
        step >> outreach(refresh.output) >> confirm >> [arrival, give_up()]
        step >> arrival
        read(arrival.output)

    reconsent_with_approval()
