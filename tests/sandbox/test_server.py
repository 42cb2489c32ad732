from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import boto3
import pytest
import requests
from helpers.sandbox import Caller, is_free, no_thread_left
from moto import mock_aws

from airflow_provider_healthex.sandbox import Sandbox, patients


def test_stopping_leaves_no_thread_no_port_and_no_bucket():
    with no_thread_left(), Sandbox() as sandbox:
        api_url, s3_url, bucket = sandbox.api_url, sandbox.s3_url, sandbox.bucket
        assert not is_free(api_url)
        assert not is_free(s3_url)
    assert is_free(api_url)
    assert is_free(s3_url)
    with Sandbox(bucket=bucket) as again:
        keys = again.s3_client().list_objects_v2(Bucket=bucket)["KeyCount"]
        assert keys == sum(len(each.file_names) for each in patients.SCENARIOS.values() if each.delivered_before)


def test_it_can_be_started_again():
    sandbox = Sandbox(delay=0)
    for _ in range(2):
        with sandbox:
            sandbox.faults.add("update", "slow", seconds=0.01)
            assert Caller(sandbox).update(patients.IN_PROGRESS).status_code == 201
            assert sandbox.asked(patients.IN_PROGRESS) == 1


def test_two_in_one_process_do_not_meet():
    with Sandbox(delay=0) as one, Sandbox(delay=0) as other:
        assert one.bucket != other.bucket
        Caller(one).update(patients.IN_PROGRESS)
        assert (one.asked(patients.IN_PROGRESS), other.asked(patients.IN_PROGRESS)) == (1, 0)
        other.reset()
        assert one.asked(patients.IN_PROGRESS) == 1


@pytest.mark.parametrize("which", ["port", "s3_port"])
def test_a_port_that_is_taken_is_an_error_and_leaves_nothing(which):
    with (
        no_thread_left(),
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="Choose another port"),
    ):
        Sandbox(**{which: taken.getsockname()[1]}).start()


def test_it_listens_on_loopback_alone(running):
    assert running.api_url.startswith("http://127.0.0.1:")
    assert running.s3_url.startswith("http://127.0.0.1:")


def test_before_the_start_it_says_so():
    for use in (lambda s: s.api_url, lambda s: s.s3_url, lambda s: s.deliver(patients.PARTIAL), lambda s: s.reset()):
        with pytest.raises(RuntimeError, match="not running"):
            use(Sandbox())


def test_it_is_started_once(running):
    with pytest.raises(RuntimeError, match="running already"):
        running.start()


def test_the_connections_lead_to_it(sandbox):
    environment = sandbox.airflow_environment()
    healthex = json.loads(environment["AIRFLOW_CONN_HEALTHEX_DEFAULT"])
    aws = json.loads(environment["AIRFLOW_CONN_AWS_DEFAULT"])
    assert (healthex["conn_type"], aws["conn_type"]) == ("healthex", "aws")
    assert healthex["extra"] == {"project_id": "project-demo"}
    body = {"apiKey": healthex["login"], "apiSecret": healthex["password"]}
    assert requests.post(healthex["host"] + "/v1/auth/token", json=body, timeout=10).status_code == 201
    client = boto3.client(
        "s3",
        endpoint_url=aws["extra"]["endpoint_url"],
        region_name=aws["extra"]["region_name"],
        aws_access_key_id=aws["login"],
        aws_secret_access_key=aws["password"],
    )
    assert client.list_objects_v2(Bucket=sandbox.bucket)["KeyCount"] > 0


def test_behind_a_proxy_the_sandbox_is_exempt(sandbox, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert "NO_PROXY" not in sandbox.airflow_environment()
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    environment = sandbox.airflow_environment()
    assert environment["NO_PROXY"] == "intranet.example,127.0.0.1,localhost"
    assert environment["no_proxy"] == "127.0.0.1,localhost"


def test_tokens_of_any_age_and_content(sandbox, call):
    def status(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return call.update(patients.IN_PROGRESS, headers=headers).status_code

    assert status(sandbox.token()) == 201
    assert status(sandbox.token(expires_in=-60)) == 401
    assert status(sandbox.token(nbf=int(time.time()) + 3600)) == 401


def test_each_sandbox_has_an_api_secret_of_its_own():
    secrets = {Sandbox().api_secret for _ in range(2)}
    assert len(secrets) == 2
    assert min(map(len, secrets)) >= 20


def test_a_reset_survives_that_moto_forgot_the_bucket():
    with Sandbox() as sandbox:
        with mock_aws():
            pass
        with pytest.raises(sandbox.s3_client().exceptions.NoSuchBucket):
            sandbox.s3_client().list_objects_v2(Bucket=sandbox.bucket)
        sandbox.reset()
        assert sandbox.s3_client().list_objects_v2(Bucket=sandbox.bucket)["KeyCount"] > 0


def test_importing_the_package_imports_neither_flask_nor_moto_nor_airflow():
    code = (
        "import sys, airflow_provider_healthex.sandbox, airflow_provider_healthex.sandbox.pytest_plugin\n"
        "import airflow_provider_healthex.sandbox.cli\n"
        "assert not {'flask', 'moto', 'boto3', 'airflow'} & set(sys.modules)\n"
        "from airflow_provider_healthex.sandbox import Sandbox\n"
        "assert 'airflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
