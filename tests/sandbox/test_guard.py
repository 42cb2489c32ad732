"""The sandbox's HTTP servers answer programs on this machine: not the pages of other sites, and not without end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import aiobotocore.session
import boto3
import pytest
import requests
from botocore.config import Config

from airflow_provider_healthex.sandbox import Sandbox, patients
from airflow_provider_healthex.sandbox.s3 import LARGEST_OBJECT
from airflow_provider_healthex.sandbox.wsgi import LARGEST

UPDATE = f"/v1/projects/project-demo/recruitment/identified-patients/{patients.IN_PROGRESS}/$updateData"


def targets(sandbox: Sandbox) -> dict[str, tuple[str, str]]:
    """A request for each of the servers and kinds of endpoint: method and URL."""
    return {
        "api": ("POST", sandbox.api_url + UPDATE),
        "token": ("POST", sandbox.api_url + "/v1/auth/token"),
        "control": ("POST", sandbox.api_url + "/_sandbox/reset"),
        "mails": ("GET", sandbox.api_url + "/_sandbox/mails"),
        "unknown": ("GET", sandbox.api_url + "/no/such/path"),
        "s3": ("GET", f"{sandbox.s3_url}/{sandbox.bucket}?list-type=2"),
        "s3 write": ("PUT", f"{sandbox.s3_url}/{sandbox.bucket}/planted"),
    }


EACH = pytest.mark.parametrize("target", ["api", "token", "control", "mails", "unknown", "s3", "s3 write"])


@pytest.fixture
def send(sandbox, target):
    method, url = targets(sandbox)[target]

    def request(headers: dict[str, str], method: str = method) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, url, headers=headers, timeout=10)

    return request


def own_authority(sandbox: Sandbox, target: str) -> str:
    return urlsplit(targets(sandbox)[target][1]).netloc


def raw(url: str, request: bytes) -> tuple[int, bytes]:
    """Send bytes, and return the answer's status and body."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    with socket.create_connection((host, port), timeout=20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


@EACH
@pytest.mark.parametrize(
    "host",
    [
        "rebound.example",
        "rebound.example:80",
        "127.0.0.1.rebound.example",
        "localhost.rebound.example",
        "notlocalhost",
        "0.0.0.0",
        "10.0.0.1",
        "169.254.169.254",
        "[2001:db8::1]",
        "127.0.0.1@rebound.example",
        "127.0.0.1,rebound.example",
        "127.0.0.1 rebound.example",
        "s3.us-east-1.amazonaws.com",
        "",
    ],
)
def test_a_rebound_name_is_refused(send, host):
    answer = send({"Host": host})
    assert answer.status_code == 403
    assert "Host must be an address of this machine" in answer.text
    assert answer.headers["Content-Type"].startswith("text/plain")


@EACH
def test_a_request_without_a_host_is_refused(sandbox, target):
    method, url = targets(sandbox)[target]
    assert raw(url, f"{method} {urlsplit(url).path} HTTP/1.0\r\n\r\n".encode())[0] == 403


@EACH
def test_a_name_in_the_request_line_counts_as_the_host(sandbox, target):
    method, url = targets(sandbox)[target]
    line = f"{method} http://rebound.example{urlsplit(url).path} HTTP/1.1\r\nHost: {own_authority(sandbox, target)}"
    assert raw(url, f"{line}\r\n\r\n".encode())[0] == 403


@EACH
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", ""])
def test_the_pages_of_other_sites_are_refused(sandbox, send, target, method, origin):
    before = sandbox.asked(patients.IN_PROGRESS)
    answer = send({"Origin": origin, "Access-Control-Request-Method": method}, method=method)
    assert answer.status_code == 403
    assert "other sites" in answer.text
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
    assert sandbox.asked(patients.IN_PROGRESS) == before
    assert "planted" not in [
        row["Key"] for row in sandbox.s3_client().list_objects_v2(Bucket=sandbox.bucket)["Contents"]
    ]


@EACH
def test_its_own_pages_may_call_and_no_other_site_may_read(sandbox, send, target):
    answer = send({"Origin": f"http://{own_authority(sandbox, target)}"})
    assert answer.status_code != 403
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "localhost.", "127.0.0.1", "127.8.8.8", "[::1]:8989"])
def test_this_machine_has_several_names(sandbox, host):
    for url in (f"{sandbox.api_url}/_sandbox/state", f"{sandbox.s3_url}/{sandbox.bucket}"):
        assert requests.get(url, headers={"Host": host}, timeout=10).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/moto-api/"),
        ("GET", "/moto-api"),
        ("GET", "/moto-api/data.json"),
        ("POST", "/moto-api/reset"),
        ("POST", "/moto-api/config"),
        ("GET", "/moto-api/../moto-api/data.json"),
        ("GET", "//moto-api/data.json"),
        ("GET", "/%6doto-api/data.json"),
        ("GET", "/favicon.ico"),
        ("GET", "/latest/meta-data/iam/security-credentials/"),
    ],
)
def test_motos_own_apis_are_closed(sandbox, method, path):
    request = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
    assert raw(sandbox.s3_url, request.encode())[0] == 404
    assert sandbox.s3_client().list_objects_v2(Bucket=sandbox.bucket)["KeyCount"] > 0


@pytest.mark.parametrize("service", ["sts", "iam", "lambda", "ec2", "secretsmanager"])
def test_of_moto_only_s3_is_served(sandbox, service):
    scope = f"AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/{service}/aws4_request, SignedHeaders=host"
    answer = requests.get(sandbox.s3_url, headers={"Authorization": scope}, timeout=10)
    assert answer.status_code == 404
    form = {"Action": "AssumeRoleWithWebIdentity", "Version": "2011-06-15"}
    assert requests.post(sandbox.s3_url, data=form, timeout=10).status_code == 404


@pytest.mark.parametrize(
    ("url", "style"), [("127.0.0.1", "path"), ("127.0.0.1", "auto"), ("localhost", "path"), ("localhost", "virtual")]
)
def test_boto3_reaches_the_bucket_in_each_style(sandbox, monkeypatch, url, style):
    resolve = socket.getaddrinfo
    # What systemd-resolved does with "bucket.localhost", and this machine may not.
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **named: resolve(
            "127.0.0.1" if str(host).endswith("localhost") else host, *rest, **named
        ),
    )  # fmt: skip
    client = boto3.client(
        "s3",
        endpoint_url=sandbox.s3_url.replace("127.0.0.1", url),
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(s3={"addressing_style": style}),
    )
    client.put_object(Bucket=sandbox.bucket, Key="mine/ä b+c", Body=b"x" * 100_000)
    assert client.get_object(Bucket=sandbox.bucket, Key="mine/ä b+c")["Body"].read() == b"x" * 100_000
    rows = client.list_objects_v2(Bucket=sandbox.bucket, Prefix="mine/")["Contents"]
    assert [row["Key"] for row in rows] == ["mine/ä b+c"]
    link = client.generate_presigned_url("get_object", {"Bucket": sandbox.bucket, "Key": "mine/ä b+c"})
    assert requests.get(link, timeout=10).content == b"x" * 100_000


def test_boto3_uploads_in_parts(sandbox, tmp_path):
    file = tmp_path / "large"
    file.write_bytes(b"x" * 20_000_000)
    client = sandbox.s3_client()
    client.upload_file(str(file), sandbox.bucket, "large")
    assert client.head_object(Bucket=sandbox.bucket, Key="large")["ContentLength"] == 20_000_000


def test_aiobotocore_reaches_the_bucket(sandbox):
    async def written() -> list[str]:
        connection = {"region_name": "us-east-1", "aws_access_key_id": "key", "aws_secret_access_key": "secret"}
        async with aiobotocore.session.get_session().create_client(
            "s3", endpoint_url=sandbox.s3_url, **connection
        ) as client:
            await client.put_object(Bucket=sandbox.bucket, Key="mine", Body=b"x")
            answer = await client.list_objects_v2(Bucket=sandbox.bucket, Prefix="mine")
            return [row["Key"] for row in answer["Contents"]]

    assert asyncio.run(written()) == ["mine"]


def limited(sandbox: Sandbox) -> dict[str, tuple[str, str, int]]:
    return {
        "api": ("POST", sandbox.api_url + UPDATE, LARGEST),
        "token": ("POST", sandbox.api_url + "/v1/auth/token", LARGEST),
        "control": ("POST", sandbox.api_url + "/_sandbox/faults", LARGEST),
        "link": ("POST", sandbox.api_url + "/link/none", LARGEST),
        "s3": ("PUT", f"{sandbox.s3_url}/{sandbox.bucket}/large", LARGEST_OBJECT),
    }


LIMITED = pytest.mark.parametrize("target", ["api", "token", "control", "link", "s3"])


@LIMITED
def test_a_body_that_is_said_to_be_too_large_is_refused_unread(sandbox, target):
    method, url, largest = limited(sandbox)[target]
    head = f"{method} {urlsplit(url).path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {largest + 1}\r\n\r\n"
    status, reason = raw(url, head.encode())
    assert status == 413
    assert f"at most {largest:,} bytes" in reason.decode()


@LIMITED
def test_chunks_without_end_are_refused(sandbox, target):
    method, url, largest = limited(sandbox)[target]
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        while sent < 4 * largest:
            sent += 2**20
            yield b"x" * 2**20

    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=30)
    with contextlib.closing(connection):
        with contextlib.suppress(ConnectionError):  # it need not take the rest
            connection.request(method, urlsplit(url).path, body=chunks(), encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 413


@LIMITED
def test_the_largest_body_is_taken(sandbox, target):
    method, url, largest = limited(sandbox)[target]
    assert requests.request(method, url, data=b"x" * largest, timeout=60).status_code != 413


@LIMITED
def test_a_length_that_is_none_is_refused(sandbox, target):
    method, url, _ = limited(sandbox)[target]
    for length in ("-1", "+5", "1_0", "five", "0x10"):
        head = f"{method} {urlsplit(url).path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n"
        head += "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
        assert raw(url, head.encode())[0] == 400, length


@LIMITED
@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-5\r\nxxxxx\r\n", b"0" * 70_000 + b"5\r\nxxxxx\r\n0\r\n\r\n"])
def test_chunks_that_cannot_be_read_are_refused(sandbox, target, chunk):
    method, url, _ = limited(sandbox)[target]
    head = f"{method} {urlsplit(url).path} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(url, head.encode() + chunk)[0] == 400


def test_a_chunked_body_arrives_whole(sandbox):
    body = json.dumps({"apiKey": sandbox.api_key, "apiSecret": sandbox.api_secret}).encode()
    url = f"{sandbox.api_url}/v1/auth/token"
    headers = {"Content-Type": "application/json"}
    answer = requests.post(url, data=iter([body[:7], body[7:]]), headers=headers, timeout=10)
    assert answer.status_code == 201
    url = f"{sandbox.s3_url}/{sandbox.bucket}/chunked"
    assert requests.put(url, data=iter([b"ab", b"cd"]), timeout=10).status_code == 200
    read = sandbox.s3_client().get_object(Bucket=sandbox.bucket, Key="chunked")["Body"].read()
    assert read == b"abcd"


def test_answers_are_closed_to_other_sites(sandbox, call):
    for answer in (call.update(patients.IN_PROGRESS), call("GET", "/_sandbox/state"), call("GET", "/none")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
