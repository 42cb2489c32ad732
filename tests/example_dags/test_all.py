"""Every example DAG: copied and unpaused, it starts no run, and so no billed request and no mail, by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.support import load_dags

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2.11
    from airflow import DAG

EXAMPLES = sorted(file.stem for file in (Path(__file__).parents[2] / "example_dags").glob("*.py"))

#: Started by deliveries rather than by a clock; it requests nothing.
EVENT_DRIVEN = ("on_delivery",)
#: Each run is for one patient.
ONE_PATIENT_A_RUN = ("reconsent_patient", "reconsent_with_approval")


def example_dag(name: str) -> DAG:
    """Return the DAG of an example; it has the file's name."""
    found = load_dags(f"example_dags/{name}.py")
    if not hasattr(found, name):
        pytest.skip(f"{name} needs a newer Airflow")
    return getattr(found, name)()


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in EVENT_DRIVEN])
def test_an_example_has_no_schedule(name):
    assert type(example_dag(name).timetable).__name__ == "NullTimetable"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_not_catch_up(name):
    assert not example_dag(name).catchup


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in (*EVENT_DRIVEN, *ONE_PATIENT_A_RUN)])
def test_an_example_has_one_run_at_a_time(name):
    assert example_dag(name).max_active_runs == 1
