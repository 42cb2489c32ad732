"""Results of the hook, returned from tasks."""

from __future__ import annotations

from typing import Any

from airflow import __version__
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_healthex.client import PatientUpdate
from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

with DAG("returned", schedule=None) as returned:

    @task
    def refresh():
        return HealthExHook().update_patient_data(patients.IN_PROGRESS)

    # Airflow makes an XCom of each entry of an annotated dict, and 3.0 can't store None in one.
    @task(multiple_outputs=False if __version__.startswith("3.0.") else None)
    def refresh_annotated() -> PatientUpdate:
        return HealthExHook().update_patient_data(patients.SEVERAL_FILES)

    @task
    def everything():
        hook = HealthExHook()
        ids = [patients.PARTIAL, patients.UNKNOWN, patients.CONSENT_EXPIRED]
        ann = {"firstName": "Ann", "lastName": "Quist", "contactPreference": "email", "languagePreference": "en"}
        return {
            "updates": list(hook.update_patients_data(ids)),
            "consented": hook.list_consented_patients(),
            "added": {"result": hook.add_patients([{**ann, "email": "ann@example.org"}, {"firstName": "Ann"}])},
        }

    @task
    def read(results: dict[str, Any]):
        return results

    for name, update in {"refresh": refresh(), "refresh_annotated": refresh_annotated()}.items():
        HealthExDataArrivalSensor(
            task_id=f"arrival_of_{name}",
            update=update,
            bucket_name="{{ dag_run.conf['bucket'] }}",
            bucket_key="d/{projectId}/{healthexPatientId}/",
            poke_interval=1,
            quiet_period=2,
            timeout=60,
        )
    read(everything())
