"""The errors a user can catch."""

from __future__ import annotations

import copy
import pickle
from datetime import datetime, timezone

import pytest

from airflow_provider_healthex import exceptions
from airflow_provider_healthex.exceptions import HealthExError

ERRORS = [
    exceptions.HealthExConfigurationError("m"),
    exceptions.HealthExUpdateAmbiguousError(
        "m", status_code=500, requested_at=datetime(2026, 1, 1, tzinfo=timezone.utc)
    ),
    exceptions.HealthExRateLimitError("m", status_code=429, detail="d", retry_after=3.0),
    exceptions.HealthExPatientActionNeeded("m", patient_id="p", reason="CONSENT_EXPIRED"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickled", "copied"]
)
def test_an_error_survives_the_way_to_another_process(error, again):
    other = again(error)
    assert type(other) is type(error)
    assert str(other) == "m"
    assert vars(other) == vars(error)


def test_a_configuration_error_is_a_value_error():
    assert issubclass(exceptions.HealthExConfigurationError, ValueError)


def test_every_error_is_a_healthex_error():
    classes = [
        value
        for value in vars(exceptions).values()
        if isinstance(value, type) and value.__module__ == exceptions.__name__
    ]
    assert len(classes) == 13
    assert all(issubclass(each, HealthExError) for each in classes)
