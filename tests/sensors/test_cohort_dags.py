"""The cohort's sensor in DAGs that Airflow runs."""

from __future__ import annotations

import pytest
from helpers.support import MODES, load_dags, reschedules, run_dag, xcom

from airflow_provider_healthex.sandbox import patients

pytestmark = [pytest.mark.usefixtures("airflow_database"), reschedules]


@pytest.fixture(scope="module")
def dags():
    return load_dags("dags/cohort_arrival.py")


def test_every_mode_waits_for_the_same_deliveries(dags, healthex_sandbox):
    run = run_dag(dags.cohort_every_mode, healthex_sandbox)
    assert run.state == "success"
    results = [{**xcom(run, mode), "manifest": None} for mode in MODES]
    assert results[0] == results[1] == results[2]
    assert results[0]["arrived_count"] == 3
    counts = {one["patient_id"]: one["object_count"] for one in results[0]["arrived"]}
    assert counts[patients.SEVERAL_FILES] > 1


@pytest.mark.timeout(300)
def test_at_the_deadline_each_mode_takes_enough_for_enough(dags, healthex_sandbox):
    run = run_dag(dags.cohort_one_misses, healthex_sandbox)
    ended = {ti.task_id: ti.state for ti in run.get_task_instances()}
    for mode in MODES:
        assert xcom(run, f"{mode}_enough")["missing"] == [patients.NOTHING_CHANGED]
        assert [ended[f"{mode}_{name}"] for name in ("enough", "fails", "skips")] == ["success", "failed", "skipped"]
