"""``execution_timeout`` as Airflow and the sensors honour it together, on each version."""

from __future__ import annotations

import contextlib

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowTaskTimeout
from helpers.support import MODES, load_dags

pytestmark = pytest.mark.usefixtures("airflow_database")


@pytest.mark.parametrize("mode", MODES)
def test_it_ends_each_mode_alike_and_says_so(bucket, mode, task_log):
    if mode == "reschedule" and airflow_version.startswith("3.0."):
        pytest.skip("dag.test() of Airflow 3.0 can't reschedule")
    dag = load_dags("dags/execution_timeouts.py").dags[mode]
    with contextlib.suppress(AirflowTaskTimeout):  # on 2.11 it leaves dag.test()
        run = dag.test(run_conf={"bucket": bucket.name})
        assert run.state == "failed"
    place = f"'s3://{bucket.name}/d/{{healthexPatientId}}/' (patient patient-1)"
    assert f"execution_timeout of 4 s exceeded while waiting for {place}; last poke: no objects" in " ".join(
        task_log().split()
    )
