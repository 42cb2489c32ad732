"""HealthEx's HTTP contract, without Airflow."""

from __future__ import annotations

from airflow_provider_healthex.client.api import HealthExClient
from airflow_provider_healthex.client.models import (
    IN_PROGRESS,
    PATIENT_ACTION_NEEDED,
    UNRECOGNIZED,
    AddPatientsResult,
    ConsentedPatient,
    PatientUpdate,
    PatientUpdateFailure,
    harmless,
)
from airflow_provider_healthex.client.settings import ApiKey, ClientSettings, StoredToken

__all__ = [
    "IN_PROGRESS",
    "PATIENT_ACTION_NEEDED",
    "UNRECOGNIZED",
    "AddPatientsResult",
    "ApiKey",
    "ClientSettings",
    "ConsentedPatient",
    "HealthExClient",
    "PatientUpdate",
    "PatientUpdateFailure",
    "StoredToken",
    "harmless",
]
