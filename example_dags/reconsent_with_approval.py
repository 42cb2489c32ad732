"""
Refresh one patient's health records; where the patient must act first, wait until the study's coordinator says so.

1. ``refresh`` asks HealthEx to update the patient's data, once.
2. ``outreach`` runs where the patient must act: it mails them their HealthEx link, or writes to the coordinator where
   a link would be wrong or no use.
3. ``confirm`` puts a question into Airflow's UI, under *Required Actions*: has the patient acted? ``confirm`` waits
   without a worker. Silence is "Give up", after two weeks.
4. ``arrival`` waits for data newer than the request, ``read`` is your own work on it; or ``give_up`` ends the run.

Needs Airflow 3.1 and ``apache-airflow-providers-standard`` 1.12.2 (for ``response_timeout``). Airflow stores the
question and shows it to whoever may see the run: it names neither the patient nor the reason, and holds no link. What
to replace: ``address_of`` and the words. More: docs/reconsent.md.
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
except (ImportError, AirflowOptionalProviderFeatureException):  # Airflow below 3.1 can't ask
    HITLBranchOperator = None

# HealthEx takes minutes to about an hour, a patient days. The tests set these accordingly.
POKE_INTERVAL = float(os.environ.get("HEALTHEX_EXAMPLE_POKE_INTERVAL", 60))
QUIET_PERIOD = float(os.environ.get("HEALTHEX_EXAMPLE_QUIET_PERIOD", 300))
TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_TIMEOUT", 24 * 60 * 60)))
RESPONSE_TIMEOUT = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_RESPONSE_TIMEOUT", 14 * 24 * 60 * 60)))
RETRY_DELAY = timedelta(seconds=float(os.environ.get("HEALTHEX_EXAMPLE_RETRY_DELAY", 5 * 60)))

#: Where the patient's link helps. Any other reason, also one that is new, is for people.
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
            # What goes wrong with a mail may repeat it, and the address: its kind says enough.
            raise RuntimeError(f"The mail was not sent: {type(error).__name__}") from None


if HITLBranchOperator is not None:

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
            "coordinator": Param(
                "coordinator@study.example", type="string", description="Who is told what needs people"
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
            on_patient_action="return",  # the answer with its reason, rather than a failure
        )

        @task.branch
        def next_step(update: dict[str, Any]) -> str:
            return "arrival" if update["message"] == "IN_PROGRESS_NO_ACTION_NEEDED" else "outreach"

        @task
        def outreach(update: dict[str, Any], params: dict[str, Any], run_id: str) -> None:
            """Write to whom it concerns. A retry after a kill may do so twice, which does no harm."""
            if update["patient_action_needed_reason"] not in LINK_HELPS:
                body = escape(
                    f"HealthEx can't refresh {params['patient_id']} of {params['project_id']}, and nobody has written "
                    f"to them. Airflow has the reason: task refresh of run {run_id}, XCom."
                )
                mail(params, params["coordinator"], "A patient of the study needs you", body)
                return
            # Whoever holds the link acts as the patient: it is not returned, printed or stored.
            link = HealthExHook(params["healthex_conn_id"]).create_patient_link(
                params["external_id"], project_id=params["project_id"]
            )
            address = address_of(params["external_id"])
            mask_secret(address)
            words = "Please sign in, and consent again if you are asked to, so that our study can go on:"
            body = f'<p>{words}</p><p><a href="{escape(link)}">{escape(link)}</a></p>'
            mail(params, address, "Our study needs you", body)

        confirm = HITLBranchOperator(
            task_id="confirm",
            subject="Has the patient of this run acted?",
            body=(
                "HealthEx can't refresh their data before they do, and a mail has gone out: to them, or to the study. "
                'When they have acted, choose "The patient has acted", and the run waits for the data. '
                "Whose run it is, its configuration says: tab Details of the run."
            ),
            options=["The patient has acted", "Give up"],
            options_mapping={"The patient has acted": "arrival", "Give up": "give_up"},
            defaults="Give up",
            response_timeout=RESPONSE_TIMEOUT,
        )
        # Airflow 3.1 would ask for the run's params once more, and keep them with the question.
        confirm.params = {}

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
            print("Given up: the patient's data stays as it was.")

        step = next_step(refresh.output)
        step >> outreach(refresh.output) >> confirm >> [arrival, give_up()]
        step >> arrival
        read(arrival.output)

    reconsent_with_approval()
