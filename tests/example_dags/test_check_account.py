"""The check as a DAG: the report in the log, and no id in XCom."""

from __future__ import annotations

import pytest
from helpers.support import load_dags, run_dag, xcom

from airflow_provider_healthex.sandbox.patients import PROJECT_ID, SCENARIOS

pytestmark = pytest.mark.usefixtures("airflow_database")


@pytest.fixture
def dag():
    return load_dags("example_dags/check_account.py").check_account()


def test_the_report_is_in_the_log_and_counts_alone_are_in_xcom(dag, sandbox, task_log):
    run = run_dag(dag, sandbox)
    assert run.state == "success"
    assert "explains 11 of 12 patients" in task_log()
    result = xcom(run, "check")
    assert result.keys() == {"verdict", "ok", "warning", "failure", "skipped"}
    assert (result["verdict"], result["failure"]) == ("warning", 0)
    assert not [id_ for id_ in (*SCENARIOS, PROJECT_ID) if id_ in str(result)]
    assert not sandbox.asked_by_patient(), "nothing is billed"


def test_a_failure_fails_the_task_without_a_retry(dag, sandbox, task_log):
    run = run_dag(dag, sandbox, path="e/{healthexPatientId}/")
    assert run.state == "failed"
    assert "matches 0 of 12 patients" in task_log()
