"""What the check says to copy runs unchanged."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.support import context_of, load_dags, run_dag, xcom

from airflow_provider_healthex.check.advice import Place, sensor_call
from airflow_provider_healthex.check.layout import Template
from airflow_provider_healthex.sandbox.layouts import LAYOUTS

from .conftest import EXTERNAL_IDS, PATIENT

DAG = """
from datetime import datetime, timezone

from airflow.providers.common.compat.sdk import Param, dag

from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
{imports}

@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    default_args={{"poke_interval": 1}},
    params={{"patient_id": Param("{patient}"), "external_id": Param("ext-in-progress")}},
)
def advised():
    refresh = HealthExUpdatePatientOperator(task_id="refresh", patient_id="{{{{ params.patient_id }}}}")
{call}

dag = advised()
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_advised_sensor_finds_the_patients_last_delivery(laid_out, checked, layout):
    sandbox = laid_out(layout, delay=8)
    report = checked(sandbox, **({"external_ids": EXTERNAL_IDS} if layout == "external" else {})).report
    since = datetime.now(timezone.utc) - timedelta(days=31)
    update = {
        "patient_id": PATIENT, "project_id": sandbox.project_id, "organization_id": sandbox.org_id,
        "requested_at": since.isoformat(), "message": "IN_PROGRESS_NO_ACTION_NEEDED",
    }  # fmt: skip
    names: dict = {"refresh": SimpleNamespace(output=update)}
    exec(report.advice, names)  # the advice is Python that is to be pasted
    sensor = names["arrival"]
    sensor.deferrable = False
    if layout == "external":
        sensor.external_id = "ext-in-progress"
    result = sensor.execute(context_of(sensor))
    assert result["object_count"] == max(len(LAYOUTS[layout].files) - bool(LAYOUTS[layout].marker), 1)
    assert all("in-progress" in key for key in result["keys"])


@pytest.mark.usefixtures("airflow_database")
def test_the_advice_pasted_into_a_dag_runs_from_request_to_arrival(laid_out, checked):
    sandbox = laid_out("marker", delay=4)
    advice = checked(sandbox).report.advice
    imports, _, call = advice.partition("\n\n")
    text = DAG.format(imports=imports, patient=PATIENT, call="\n".join(f"    {line}" for line in call.splitlines()))
    file = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]) / "advised.py"
    file.write_text(text)
    try:
        run = run_dag(load_dags("advised.py").dag, sandbox)
        assert run.state == "success"
        assert xcom(run, "arrival")["object_count"] == 3
        assert xcom(run, "arrival")["first_modified"] >= xcom(run, "refresh")["requested_at"]
        assert sandbox.asked(PATIENT) == 1
    finally:
        file.unlink()


def test_without_deliveries_the_advice_keeps_the_defaults_and_says_so():
    text = sensor_call(Template("d/{healthexPatientId}/", False, 1), None, Place("bucket", "aws_other"), skew=7)
    assert "# quiet_period: the default" in text
    assert "# the path rests on 1 patient alone" in text
    assert 'aws_conn_id="aws_other"' in text
    assert "clock_skew=7" in text
    compile(text, "advice", "exec")
