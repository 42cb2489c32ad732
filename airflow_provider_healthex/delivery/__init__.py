"""Has the refreshed data arrived? Pure functions on listings: no I/O, no Airflow, no boto3."""

from airflow_provider_healthex.delivery.arrival import (
    Arrived,
    Expectation,
    StoredObject,
    Tally,
    Waiting,
    decide,
)
from airflow_provider_healthex.delivery.cohort import AllSettled, CohortExpectation, CohortWait, Member, Settled
from airflow_provider_healthex.delivery.template import VARIABLES, Kind, Target, expand, parse_key

__all__ = [
    "VARIABLES",
    "AllSettled",
    "Arrived",
    "CohortExpectation",
    "CohortWait",
    "Expectation",
    "Kind",
    "Member",
    "Settled",
    "StoredObject",
    "Tally",
    "Target",
    "Waiting",
    "decide",
    "expand",
    "parse_key",
]
