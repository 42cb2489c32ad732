"""Has the refreshed data arrived? Decided from listings alone: no I/O, no Airflow, no boto3."""

from airflow_provider_healthex.delivery.arrival import Arrival, ArrivalWait, Expectation, Patient
from airflow_provider_healthex.delivery.plan import Pause, Plan, Waiting
from airflow_provider_healthex.delivery.rule import ArrivalRule, StoredObject
from airflow_provider_healthex.delivery.template import VARIABLES, Kind, Target, expand, parse_key

__all__ = [
    "VARIABLES",
    "Arrival",
    "ArrivalRule",
    "ArrivalWait",
    "Expectation",
    "Kind",
    "Patient",
    "Pause",
    "Plan",
    "StoredObject",
    "Target",
    "Waiting",
    "expand",
    "parse_key",
]
