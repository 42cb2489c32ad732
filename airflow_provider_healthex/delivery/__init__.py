"""Has the refreshed data arrived? Pure functions on listings: no I/O, no Airflow, no boto3."""

from airflow_provider_healthex.delivery.arrival import (
    Arrived,
    Expectation,
    StoredObject,
    Tally,
    Waiting,
    decide,
)
from airflow_provider_healthex.delivery.template import VARIABLES, Kind, Target, expand, parse_key

__all__ = [
    "VARIABLES",
    "Arrived",
    "Expectation",
    "Kind",
    "StoredObject",
    "Tally",
    "Target",
    "Waiting",
    "decide",
    "expand",
    "parse_key",
]
