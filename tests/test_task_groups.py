"""The task group returns one list of results, and a chunk's failure stays its own; on Airflow, against the sandbox."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import DAG
from helpers.support import load_dags, run_dag, task_states, xcom

from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.task_groups import healthex_refresh

pytestmark = pytest.mark.usefixtures("airflow_database")


@pytest.fixture(scope="module")
def dags():
    return load_dags("dags/task_groups.py")


def test_one_list_of_patients_gives_a_list_with_one_result(dags, healthex_sandbox):
    run = run_dag(dags.one_list, healthex_sandbox)
    assert run.state == "success"
    assert xcom(run, "count") == [2]
    assert {ti.rendered_map_index for ti in run.get_task_instances()} == {None}
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1


def test_one_chunk_gives_a_list_with_one_result(dags, healthex_sandbox):
    run = run_dag(dags.one_chunk, healthex_sandbox)
    assert run.state == "success"
    assert xcom(run, "count") == [1]


def test_a_chunks_failure_stays_its_own_and_fails_the_run(dags, healthex_sandbox):
    run = run_dag(dags.chunks, healthex_sandbox)
    # The second accepted nothing. The third failed with an accepted update, which is billed, and is waited for.
    assert task_states(run, "refreshed.chunk.refresh") == ["success", "failed", "failed"]
    assert [xcom(run, "refreshed.chunk.arrival", index)["arrived_count"] for index in (0, 2)] == [1, 1]
    arrived = [[one["patient_id"] for one in result["arrived"]] for result in xcom(run, "refreshed.results")]
    assert [patients.IN_PROGRESS] in arrived
    assert [patients.PARTIAL] in arrived
    assert task_states(run, "count") == ["success"]
    assert run.state == "failed"
    names = {ti.rendered_map_index for ti in run.get_task_instances() if ".chunk." in ti.task_id}
    assert names == {"chunk 0", "chunk 1", "chunk 2"}


def test_an_option_that_does_not_exist_is_refused_by_name():
    with pytest.raises(TypeError, match=r"^healthex_refresh has no option 'retries'\. It has: group_id, project_id, "):
        healthex_refresh.partial(bucket_key="d/{healthexPatientId}/", retries=3)


def test_literal_options_are_checked_when_the_dag_is_parsed():
    with DAG("unusable", schedule=None), pytest.raises(HealthExConfigurationError, match="name the patient"):
        healthex_refresh(patient_ids=["p-1"], bucket_name="deliveries", bucket_key="d/")


def test_with_a_path_it_waits_on_an_sftp_server():
    with DAG("sftp", schedule=None) as dag:
        healthex_refresh(patient_ids=["p-1"], path="d/{healthexPatientId}/", sftp_conn_id="sftp_default")
    assert type(dag.get_task("healthex_refresh.arrival")).__name__ == "HealthExSftpCohortArrivalSensor"
