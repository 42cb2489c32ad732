"""A DAG whose cohorts are waited for on the triggerer: one until all have arrived, one until its deadline."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor

with DAG("cohort_waits", schedule=None, render_template_as_native_obj=True):
    for name, arguments in {"all": {"timeout": 600}, "most": {"timeout": 40, "min_fraction": 0.6}}.items():
        refresh = HealthExUpdateCohortOperator(
            task_id=f"refresh_{name}", patient_ids=f"{{{{ dag_run.conf['{name}'] }}}}"
        )
        HealthExCohortArrivalSensor(
            task_id=name,
            update=refresh.output,
            bucket_name="{{ dag_run.conf['bucket'] }}",
            bucket_key="d/{projectId}/{healthexPatientId}/",
            poke_interval=2,
            quiet_period=1,
            deferrable=True,
            **arguments,
        )
