"""Which failures to find a connection are final, on a worker and on a triggerer."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import Connection

from airflow_provider_healthex.delivery.arrival import Waiting
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExConnectionError
from airflow_provider_healthex.hooks import connection as module
from airflow_provider_healthex.hooks.connection import find_connection, find_connection_async
from airflow_provider_healthex.hooks.healthex import HealthExHook

try:
    from airflow.sdk.exceptions import ErrorType
    from airflow.sdk.execution_time import supervisor, task_runner
    from airflow.sdk.execution_time.comms import ConnectionResult, ErrorResponse
except ImportError:
    supervisor = None

from airflow.secrets.environment_variables import EnvironmentVariablesBackend

on_airflow_3 = pytest.mark.skipif(supervisor is None, reason="Airflow 3 alone reads connections through an API")


class Backend:
    """A secrets backend that does what a script says, and the last of it from then on."""

    def __init__(self, *script):
        self.script, self.calls = list(script), 0

    def get_connection(self, conn_id, **kwargs):
        self.calls += 1
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer and Connection(conn_id=conn_id, conn_type="healthex", host=answer)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "DELAYS", (0.01, 0.01, 0.01, 0.01))


@pytest.fixture
def backends(monkeypatch):
    def use(*backends):
        chain = [EnvironmentVariablesBackend(), *backends]
        for name in ("airflow.configuration", "airflow.models.connection"):
            monkeypatch.setattr(f"{name}.ensure_secrets_loaded", lambda *args, **kwargs: chain, raising=False)
        if supervisor is not None:
            monkeypatch.setattr(supervisor, "ensure_secrets_backend_loaded", lambda: chain)

    return use


@pytest.fixture
def api(monkeypatch, backends):
    """A task's or trigger's channel to Airflow's API: the answers that its supervisor gives."""
    try:
        from airflow.sdk.execution_time.secrets.execution_api import ExecutionAPISecretsBackend
    except ImportError:  # 3.0 has it in no backend
        chain = []
    else:
        chain = [ExecutionAPISecretsBackend()]

    def use(*answers):
        script, requests = list(answers), []

        def send(message):
            requests.append(message.conn_id)
            answer = script.pop(0) if len(script) > 1 else script[0]
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, str):
                fields = dict.fromkeys(ConnectionResult.model_fields, None)
                known = {"conn_id": message.conn_id, "conn_type": "healthex", "host": answer}
                return ConnectionResult.model_construct(**{**fields, **known})
            return ErrorResponse(error=answer)

        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(send=send), raising=False)
        backends(*chain)
        return requests

    return use


def on_worker(conn_id, **kwargs):
    return find_connection(conn_id, **kwargs)


def on_triggerer(conn_id, **kwargs):
    return asyncio.run(find_connection_async(conn_id, **kwargs))


both = pytest.mark.parametrize("find", [on_worker, on_triggerer])


@both
def test_a_connection_is_found(find, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_MINE", json.dumps({"conn_type": "healthex", "host": "h"}))
    assert find("mine").host == "h"


@both
def test_where_no_backend_knows_it_a_connection_is_not_found_at_once(find, backends, caplog):
    backend = Backend(None)
    backends(backend)
    with pytest.raises(HealthExConfigurationError, match=r"no Airflow connection 'mine'.*create the connection"):
        find("mine")
    assert "Retrying" not in caplog.text


@both
def test_a_backend_in_trouble_is_retried(find, backends, caplog):
    backends(Backend(*[OSError("password=hunter2")] * 4, "h"))
    assert find("mine").host == "h"
    assert "look-up of connection 'mine' failed (Backend: OSError)" in caplog.text
    assert not any("hunter2" in record.getMessage() for record in caplog.records if record.name == module.__name__)


@both
def test_a_backend_that_stays_in_trouble_ends_retryable(find, backends):
    backend = Backend(OSError("password=hunter2"))
    backends(backend)
    with pytest.raises(HealthExConnectionError, match=r"look-up of connection 'mine' failed.*safe to retry") as caught:
        find("mine")
    assert backend.calls == 2 * 5
    assert caught.value.__cause__ is caught.value.__context__ is None


@both
@pytest.mark.parametrize("value", ["{not json", "healthex://host:port"])
def test_a_variable_that_cannot_be_parsed_is_named_at_once(find, backends, monkeypatch, caplog, value):
    backends()
    monkeypatch.setenv("AIRFLOW_CONN_MINE", value)
    with pytest.raises(HealthExConfigurationError, match=r"'mine' can't be parsed.*AIRFLOW_CONN_MINE"):
        find("mine")
    assert "Retrying" not in caplog.text


@on_airflow_3
@both
@pytest.mark.parametrize("trouble", ["API_SERVER_ERROR", "GENERIC_ERROR", "CONNECTION_NOT_FOUND", EOFError()])
def test_trouble_of_the_api_server_is_retried(find, api, trouble):
    failed = ErrorType[trouble] if isinstance(trouble, str) else trouble
    requests = api(*[failed] * 4, "h")
    assert find("mine").host == "h"
    assert len(requests) >= 5


@on_airflow_3
@both
@pytest.mark.parametrize("trouble", ["API_SERVER_ERROR", "GENERIC_ERROR"])
def test_an_api_server_that_stays_in_trouble_ends_retryable(find, api, trouble):
    api(ErrorType[trouble])
    with pytest.raises(HealthExConnectionError, match=rf"'mine' failed.*({trouble}|AirflowRuntimeError)"):
        find("mine")


@on_airflow_3
@both
def test_not_found_is_final_where_the_api_server_keeps_to_it(find, api):
    requests = api(ErrorType.CONNECTION_NOT_FOUND)
    with pytest.raises(HealthExConfigurationError, match="no Airflow connection 'mine'"):
        find("mine")
    assert len(requests) in (5, 2 * 5)  # 3.0 says itself what failed


@on_airflow_3
@both
def test_without_confirmation_the_first_not_found_counts(find, api):
    requests = api(ErrorType.CONNECTION_NOT_FOUND)
    with pytest.raises(HealthExConfigurationError):
        find("mine", confirm=False)
    assert len(requests) <= 2


def test_a_cancel_ends_the_waits(backends, monkeypatch):
    monkeypatch.setattr(module, "DELAYS", (60.0, 60.0))
    backends(Backend(OSError()))
    cancelled = threading.Event()
    threading.Timer(0.1, cancelled.set).start()
    began = time.monotonic()
    with pytest.raises(HealthExConnectionError):
        find_connection("mine", cancelled=cancelled)
    assert time.monotonic() - began < 20


def test_the_event_loop_goes_on_meanwhile(backends):
    class Slow(Backend):
        def get_connection(self, conn_id, **kwargs):
            time.sleep(0.2)
            return super().get_connection(conn_id)

    backends(Slow("h"))

    async def count():
        finding = asyncio.create_task(find_connection_async("mine"))
        turns = 0
        while not finding.done():
            await asyncio.sleep(0.01)
            turns += 1
        return turns

    assert asyncio.run(count()) > 5


def test_the_hook_retries_and_ends_retryable(backends):
    backends(Backend(OSError()))
    with pytest.raises(HealthExConnectionError, match="look-up of connection 'healthex_default' failed"):
        HealthExHook().update_patient_data("p", project_id="p")


def test_a_cancelled_hook_waits_for_no_connection(backends, monkeypatch):
    monkeypatch.setattr(module, "DELAYS", (60.0, 60.0))
    backends(Backend(OSError()))
    hook = HealthExHook()
    hook.cancel()
    with pytest.raises(HealthExConnectionError):
        hook.update_patient_data("p", project_id="p")


def no_request():
    return
    yield


def places():
    from airflow_provider_healthex.storage.s3 import AsyncBucket, AwsAccess, Bucket

    async def on_a_triggerer(place):
        async with place:
            return await place.run(no_request())

    yield "s3 on a worker", lambda: Bucket("b", AwsAccess("mine")).run(no_request())
    yield "s3 by default", lambda: Bucket("b", AwsAccess("aws_default")).run(no_request())
    yield "s3 on a triggerer", lambda: asyncio.run(on_a_triggerer(AsyncBucket("b", AwsAccess("mine"), "triggerer")))
    try:
        from airflow_provider_healthex.storage.sftp import AsyncSftpServer, SftpServer
    except ModuleNotFoundError:
        return
    yield "sftp on a worker", lambda: SftpServer("mine").run(no_request())
    yield "sftp on a triggerer", lambda: asyncio.run(on_a_triggerer(AsyncSftpServer("mine", "triggerer")))


@pytest.mark.parametrize("poke", [pytest.param(poke, id=name) for name, poke in places()])
def test_a_poke_waits_for_airflow_and_names_it(backends, poke):
    backends(Backend(OSError()))
    waiting = poke()
    assert isinstance(waiting, Waiting)
    assert waiting.reason.startswith("Airflow's look-up of connection '")


def test_the_test_button_looks_up_the_connection_once(backends):
    backend = Backend(OSError())
    backends(backend)
    ok, text = HealthExHook().test_connection()
    assert not ok
    assert "look-up of connection 'healthex_default' failed" in text
    assert backend.calls == 2
