"""
A pytest fixture for tests of one's own DAGs: a HealthEx that answers and delivers on this machine.

Pytest finds it by itself wherever this package is installed. In a test::

    def test_the_refresh_arrives(healthex_sandbox):
        run = my_dag.test(run_conf={"patient_id": healthex_sandbox.patients.IN_PROGRESS})
        assert run.state == "success"
        assert healthex_sandbox.asked(healthex_sandbox.patients.IN_PROGRESS) == 1

    def test_a_request_is_retried_when_the_service_is_busy(healthex_sandbox):
        healthex_sandbox.faults.add("update", 429, times=2, retry_after=1)
        ...

``healthex_sandbox`` is a `Sandbox`. While a test uses it,
``AIRFLOW_CONN_HEALTHEX_DEFAULT``, ``AIRFLOW_CONN_AWS_DEFAULT`` and ``AIRFLOW_CONN_SMTP_DEFAULT`` lead to it. Each
test begins afresh: no requests, no mails, no faults, and the bucket ``healthex_sandbox.bucket`` holds the patients'
earlier deliveries, 30 days old. Deliveries come 1 second after a request. The servers run for the session, at the same
addresses.

For another delay or path, override the settings in ``conftest.py``::

    @pytest.fixture(scope="session")
    def healthex_sandbox_settings():
        return {"delay": 0.2, "path": "healthex/{orgId}/{externalId}/"}

With ``"delivery": "sftp"`` (extra ``sftp``) there is ``AIRFLOW_CONN_SFTP_DEFAULT`` in place of
``AIRFLOW_CONN_AWS_DEFAULT``, and no bucket; ``healthex_sandbox.files(patient_id)`` lists the delivered files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow_provider_healthex.sandbox.server import Sandbox


@pytest.fixture(scope="session")
def healthex_sandbox_settings() -> dict[str, Any]:
    """Return the arguments of the session's ``Sandbox``. Override it to change them."""
    return {"delay": 1.0}


@pytest.fixture(scope="session")
def healthex_sandbox_session(healthex_sandbox_settings: dict[str, Any]) -> Iterator[Sandbox]:
    """Run one sandbox for the session."""
    try:
        from airflow_provider_healthex.sandbox.server import Sandbox
    except ModuleNotFoundError as error:
        install = "pip install 'airflow-provider-healthex[sandbox]'"
        pytest.fail(f"The fixture healthex_sandbox needs {error.name}: {install}", pytrace=False)

    with Sandbox(**healthex_sandbox_settings) as sandbox:
        yield sandbox


@pytest.fixture
def healthex_sandbox(healthex_sandbox_session: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Reset the session's sandbox, and set Airflow connections to it."""
    healthex_sandbox_session.reset()
    for name, value in healthex_sandbox_session.airflow_environment().items():
        monkeypatch.setenv(name, value)
    return healthex_sandbox_session
