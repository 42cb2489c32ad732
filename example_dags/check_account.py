"""
Check an account from inside Airflow: connection, rights, and where and how HealthEx delivers. Nothing is billed.

The same as the command ``healthex-check``, for those without a shell on a worker (managed Airflow). The report is in
the log of the task ``check``; ids are shortened in it. The task fails where something must be changed. docs/check.md
explains the report.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, Param, dag, task

from airflow_provider_healthex.check.run import Check, Settings


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    params={
        "healthex_conn_id": Param("healthex_default", type="string", description="Airflow connection to HealthEx"),
        "project_id": Param("", type="string", description="HealthEx project (study); empty: the connection's"),
        "bucket": Param("healthex-deliveries", type="string", description="Bucket HealthEx delivers to; or empty"),
        "aws_conn_id": Param("aws_default", type="string", description="Airflow connection to the bucket"),
        "sftp_conn_id": Param("", type="string", description="Airflow connection to the SFTP server, with no bucket"),
        "path": Param("", type="string", description="A delivery path to hold against what is there; or empty"),
    },
    tags=["healthex"],
    doc_md=__doc__,
)
def check_account() -> None:
    @task
    def check(params: Any = None) -> dict[str, Any]:
        """Print the report, and return how many lines are ok, warnings and failures: no ids."""
        report = Check(
            Settings(
                healthex_conn_id=params["healthex_conn_id"],
                project=params["project_id"] or None,
                bucket=params["bucket"] or None,
                aws_conn_id=params["aws_conn_id"],
                sftp_conn_id=params["sftp_conn_id"] or None,
                path=params["path"] or None,
            )
        ).run()
        print(report.text())
        if report.has_failed():
            raise AirflowFailException("The check found failures: see the lines above")
        return {"verdict": report.verdict.value, **report.counts()}

    check()


check_account()
