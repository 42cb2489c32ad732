"""A sandbox with a short delay, shared by the tests of the examples."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_healthex.sandbox import Sandbox


@pytest.fixture(scope="package")
def quick() -> Iterator[Sandbox]:
    with Sandbox(delay=0.2) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(quick: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The sandbox, reset, and Airflow's connections to it."""
    quick.reset()
    for name, value in quick.airflow_environment().items():
        monkeypatch.setenv(name, value)
    return quick
