from __future__ import annotations

import gzip
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.loopback import PATIENT, PROJECT, STARTED, Reply, Service, closed_port, raw, says, status

from airflow_provider_healthex import __version__
from airflow_provider_healthex.client import HealthExClient
from airflow_provider_healthex.exceptions import (
    HealthExApiError,
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExUpdateAmbiguousError,
)

Connect = Callable[..., HealthExClient]
MIB = 1024**2


def test_headers_and_body_of_an_update(service: Service, client: HealthExClient) -> None:
    client.update_patient(PROJECT, PATIENT)
    (request,) = service.received
    assert request.method == "POST"
    assert request.body == b"{}"
    assert request.headers["Accept"] == request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"] == f"airflow-provider-healthex/{__version__}"


def test_a_connection_is_reused(service: Service, client: HealthExClient) -> None:
    for _ in range(3):
        client.update_patient(PROJECT, PATIENT)
    assert service.connections == 1


def test_many_threads_may_share_a_client(service: Service, client: HealthExClient) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: client.update_patient(PROJECT, f"p-{number}"), range(64)))
    assert len({each.target for each in service.received}) == 64
    assert service.connections <= 16


def test_netrc_does_not_replace_the_token(
    service: Service, connect: Connect, api_key: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    service.answers_token_requests(says({"token": "requested-token"}))
    connect(credentials=api_key).update_patient(PROJECT, PATIENT)
    assert service.token_requests[0].headers["Authorization"] is None
    assert service.received[0].headers["Authorization"] == "Bearer requested-token"


def test_cookies_are_not_kept(service: Service, client: HealthExClient) -> None:
    service.answers(says(STARTED, Set_Cookie="session=1; Path=/"))
    for _ in range(2):
        client.update_patient(PROJECT, PATIENT)
    assert service.received[1].headers["Cookie"] is None


def test_a_compressed_answer_is_read(service: Service, client: HealthExClient) -> None:
    body = gzip.compress(says(STARTED).body)
    service.answers(Reply(201, body, {"Content-Encoding": "gzip"}))
    assert client.update_patient(PROJECT, PATIENT).retrieval_id == "r-1"


def test_a_chunked_answer_is_read(service: Service, client: HealthExClient) -> None:
    body = says(STARTED).body
    head = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
    service.answers(raw(head, b"5\r\n%b\r\n" % body[:5], b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 5, body[5:])))
    assert client.update_patient(PROJECT, PATIENT).retrieval_id == "r-1"


def test_an_answer_ended_by_closing_is_read(service: Service, client: HealthExClient) -> None:
    service.answers(raw(b"HTTP/1.0 201 Created\r\n\r\n", says(STARTED).body))
    assert client.update_patient(PROJECT, PATIENT).retrieval_id == "r-1"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(service: Service, client: HealthExClient, code: int) -> None:
    service.answers(status(code, "x" * 100, Location=f"{service.url}/elsewhere?sig=1"))
    with pytest.raises(HealthExApiError, match=r"never followed.*check the host") as error:
        client.update_patient(PROJECT, PATIENT)
    assert type(error.value) is HealthExApiError
    assert error.value.status_code == code
    assert "sig" not in str(error.value)
    assert len(service.received) == 1


def test_no_more_than_the_limit_is_read_of_an_answer(service: Service, client: HealthExClient) -> None:
    service.answers(says({**STARTED, "more": "x" * MIB}))
    with pytest.raises(HealthExUpdateAmbiguousError, match="longer than 1 MiB"):
        client.update_patient(PROJECT, PATIENT)


def test_the_limit_is_of_what_is_decoded(service: Service, client: HealthExClient) -> None:
    service.answers(
        Reply(201, gzip.compress(says({**STARTED, "more": " " * 2 * MIB}).body), {"Content-Encoding": "gzip"})
    )
    with pytest.raises(HealthExUpdateAmbiguousError, match="longer than 1 MiB"):
        client.update_patient(PROJECT, PATIENT)


def test_a_small_body_that_unpacks_to_a_huge_one_is_not_unpacked_whole(
    service: Service, client: HealthExClient
) -> None:
    """pyproject.toml requires a urllib3 that unpacks every layer; older ones leave the last."""
    packed = gzip.compress(gzip.compress(gzip.compress(bytes(100 * MIB))))
    assert len(packed) < 1000
    service.answers(Reply(201, packed, {"Content-Encoding": "gzip, gzip, gzip"}))
    tracemalloc.start()
    try:
        with pytest.raises(HealthExUpdateAmbiguousError, match="longer than 1 MiB"):
            client.update_patient(PROJECT, PATIENT)
        assert tracemalloc.get_traced_memory()[1] < 20 * MIB
    finally:
        tracemalloc.stop()


def test_a_huge_error_is_cut(service: Service, client: HealthExClient) -> None:
    service.answers(status(400, "no " * MIB))
    with pytest.raises(HealthExApiError) as error:
        client.update_patient(PROJECT, PATIENT)
    assert len(error.value.detail) <= 500


def test_a_long_list_is_read(service: Service, client: HealthExClient) -> None:
    consents = [{"hasPatientConsented": True, "studyId": PROJECT}]
    service.answers(says([{"patientId": f"p-{number}", "consents": consents} for number in range(20_000)]))
    assert len(client.list_consented_patients(PROJECT)) == 20_000


def test_an_answer_that_drips_is_cut_when_its_time_is_over(service: Service, client: HealthExClient) -> None:
    body = says(STARTED).body
    head = b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n" % len(body)
    service.answers(raw(head, *(body[index : index + 1] for index in range(len(body))), pause=0.2))
    began = time.monotonic()
    with pytest.raises(HealthExUpdateAmbiguousError, match=r"not whole within 0\.3 s"):
        client.update_patient(PROJECT, PATIENT)
    assert time.monotonic() - began < 5


@pytest.fixture
def slammed() -> Iterator[tuple[int, list[int]]]:
    """A port that accepts connections and closes them at the first byte, or answers a fixed text."""
    listener, accepted = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            accepted.append(1)
            with connection:
                if connection.recv(4096).startswith(b"CONNECT"):
                    connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    yield listener.getsockname()[1], accepted
    # close() does not wake it, and a restarted accept() would take the connections of the file number's next owner.
    listener.shutdown(socket.SHUT_RDWR)
    server.join()
    listener.close()


def test_a_refused_connection_never_reached_the_service(connect: Connect) -> None:
    client = connect(base_url=f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(HealthExConnectionError, match=r"not sent: connection refused.*never reached.*safe to retry"):
        client.update_patient(PROJECT, PATIENT)


def test_an_unknown_host_never_reached_the_service(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(HealthExConnectionError, match="name could not be resolved"):
        connect(base_url="https://healthex.invalid").update_patient(PROJECT, PATIENT)


def test_a_tls_handshake_that_is_cut_never_reached_the_service(
    connect: Connect, slammed: tuple[int, list[int]]
) -> None:
    port, accepted = slammed
    with pytest.raises(HealthExConnectionError, match="never reached"):
        connect(base_url=f"https://127.0.0.1:{port}").update_patient(PROJECT, PATIENT)
    assert len(accepted) == 5


def test_a_tls_handshake_without_an_answer_never_reached_the_service(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = connect(base_url=f"https://127.0.0.1:{silent.getsockname()[1]}", connect_timeout=0.05)
        with pytest.raises(HealthExConnectionError, match="not sent: timed out"):
            client.update_patient(PROJECT, PATIENT)


def test_a_tunnel_that_the_proxy_refused_never_reached_the_service(
    connect: Connect, slammed: tuple[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, accepted = slammed
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:hunter2@127.0.0.1:{port}")
    with pytest.raises(HealthExConnectionError, match="the proxy refused the tunnel") as error:
        connect(base_url="https://healthex.invalid").update_patient(PROJECT, PATIENT)
    assert len(accepted) == 5
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_never_reached_the_service(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(HealthExConnectionError, match="not sent: connection refused"):
        connect(base_url=f"{scheme}://healthex.invalid", allow_http=True).update_patient(PROJECT, PATIENT)


def test_a_proxy_of_the_environment_is_used(
    service: Service, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", service.url)
    connect(base_url="http://healthex.invalid", allow_http=True).update_patient(PROJECT, PATIENT)
    assert service.received[0].target.startswith("http://healthex.invalid/v1/projects/")
    assert service.received[0].target.endswith("/$updateData")


def test_an_impossible_proxy_is_a_matter_of_configuration(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://")
    with pytest.raises(HealthExConfigurationError, match="proxy"):
        connect(base_url="https://healthex.invalid").update_patient(PROJECT, PATIENT)


def test_an_untrusted_certificate_is_not_tried_again(tls_service: Service, connect: Connect) -> None:
    with pytest.raises(HealthExConnectionError, match="Check the certificate"):
        connect(base_url=tls_service.url).update_patient(PROJECT, PATIENT)
    assert (tls_service.connections, tls_service.received) == (1, [])


def test_a_ca_bundle_of_the_settings_is_trusted_whatever_the_environment_says(
    tls_service: Service, connect: Connect, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle")
    client = connect(base_url=tls_service.url, verify=str(certificate[0]))
    assert client.update_patient(PROJECT, PATIENT).retrieval_id == "r-1"


def test_a_ca_bundle_of_the_environment_is_trusted(
    tls_service: Service, connect: Connect, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    assert connect(base_url=tls_service.url).update_patient(PROJECT, PATIENT).retrieval_id == "r-1"


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_verify_false_holds_whatever_the_environment_says(
    tls_service: Service, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle")
    assert connect(base_url=tls_service.url, verify=False).update_patient(PROJECT, PATIENT).retrieval_id == "r-1"


def test_a_missing_ca_bundle_of_the_environment_is_named(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle")
    with pytest.raises(HealthExConfigurationError, match="/no/such/bundle"):
        connect(base_url="https://127.0.0.1:1").update_patient(PROJECT, PATIENT)


def test_a_ca_bundle_without_certificates_is_not_tried_again(
    tls_service: Service, connect: Connect, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(HealthExConnectionError, match="Check the certificate"):
        connect(base_url=tls_service.url, verify=str(tmp_path / "empty.pem")).update_patient(PROJECT, PATIENT)


def test_a_connection_the_service_closed_while_idle_is_not_used_for_an_update(
    service: Service, client: HealthExClient
) -> None:
    body = says(STARTED).body
    service.answers(raw(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)))
    client.update_patient(PROJECT, PATIENT)
    time.sleep(0.1)
    client.update_patient(PROJECT, PATIENT)
    assert service.connections == 2
