"""Each answer belongs to its own patient, whatever a server does on a connection."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from helpers.loopback import PATIENT, PROJECT, Received, Reply, Service, accepted, keeps, raw

from airflow_provider_healthex.client import HealthExClient
from airflow_provider_healthex.exceptions import (
    HealthExConnectionError,
    HealthExNotFoundError,
    HealthExUpdateAmbiguousError,
)

Connect = Callable[..., HealthExClient]

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
STRANGER = accepted("of-another-patient")


def chunked(retrieval_id: str, *headers: bytes) -> bytes:
    _, _, body = accepted(retrieval_id).partition(b"\r\n\r\n")
    lines = (b"HTTP/1.1 201 Created", b"Transfer-Encoding: chunked", *headers, b"", b"")
    return b"\r\n".join(lines) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def each_its_own(service: Service, answer: Callable[[str], bytes]) -> None:
    """Let the service answer every patient with a retrieval of the patient's id."""
    service.answers_each(lambda request: keeps(answer(request.patient_id)))


def retrievals(client: HealthExClient, *patient_ids: str) -> list[str | None]:
    return [client.update_patient(PROJECT, patient_id).retrieval_id for patient_id in patient_ids]


def ambiguous(client: HealthExClient, patient_id: str = PATIENT) -> HealthExUpdateAmbiguousError:
    with pytest.raises(HealthExUpdateAmbiguousError) as error:
        client.update_patient(PROJECT, patient_id)
    assert error.value.__cause__ is error.value.__context__ is None
    return error.value


# Interim answers


@pytest.mark.parametrize("code", [100, 102, 103, 110, 199])
@pytest.mark.parametrize("count", [1, 20])
def test_interim_answers_are_skipped(service: Service, client: HealthExClient, code: int, count: int) -> None:
    interim = b"HTTP/1.1 %d Wait\r\nContent-Length: 7\r\n\r\n" % code * count
    each_its_own(service, lambda patient_id: interim + accepted(patient_id))
    assert retrievals(client, "p-1", "p-2", "p-3") == ["p-1", "p-2", "p-3"]
    assert service.connections == 1


def test_an_error_after_an_interim_answer_is_that_error(service: Service, client: HealthExClient) -> None:
    service.answers(raw(HINTS, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
    with pytest.raises(HealthExNotFoundError):
        client.update_patient(PROJECT, PATIENT)


@pytest.mark.parametrize(
    "interim", [HINTS * 101, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"], ids=["too many", "101"]
)
def test_an_endless_run_of_interim_answers_is_ambiguous_and_its_connection_dropped(
    service: Service, client: HealthExClient, interim: bytes
) -> None:
    service.answers(keeps(interim + STRANGER), keeps(accepted("p-2")))
    assert ambiguous(client).status_code is None
    assert retrievals(client, "p-2") == ["p-2"]
    assert service.connections == 2


def test_an_interim_answer_without_a_final_one_is_ambiguous(service: Service, client: HealthExClient) -> None:
    service.answers(raw(HINTS))
    assert "closed without an answer" in str(ambiguous(client))


# No answer is taken for the next patient's


@pytest.mark.parametrize(
    "doubtful",
    [
        lambda own: accepted(own) + STRANGER,
        lambda own: accepted(own) + b"\r\n",
        lambda own: chunked(own) + STRANGER,
        lambda own: chunked(own, b"Content-Length: 5"),
        lambda own: accepted(own, b"X-Folded: a", b" b"),
        lambda own: accepted(own).replace(b"HTTP/1.1", b"HTTP/1.0"),
        lambda own: accepted(own, b"Connection: close"),
        lambda own: accepted(own, b"Transfer-Encoding: identity"),
    ],
    ids=["surplus", "blank line", "after chunks", "two framings", "folded", "HTTP/1.0", "close", "identity"],
)
def test_a_connection_in_doubt_is_not_used_again(
    service: Service, client: HealthExClient, doubtful: Callable[[str], bytes]
) -> None:
    closing = doubtful("") == accepted("", b"Transfer-Encoding: identity")
    service.answers_each(lambda request: (raw if closing else keeps)(doubtful(request.patient_id)))
    assert retrievals(client, "p-1", "p-2", "p-3") == ["p-1", "p-2", "p-3"]
    assert service.connections == 3


def test_over_tls_surplus_is_not_taken_for_the_next_answer(
    tls_service: Service, connect: Connect, certificate: tuple[Path, Path]
) -> None:
    # More than one read of the head takes from the TLS record: the rest doesn't show on the socket.
    padding = b"X-Padding: " + b"x" * 8_000
    each_its_own(tls_service, lambda own: accepted(own, padding) + STRANGER)
    client = connect(base_url=tls_service.url, verify=str(certificate[0]))
    assert retrievals(client, "p-1", "p-2", "p-3") == ["p-1", "p-2", "p-3"]
    assert tls_service.connections == 3


def test_an_answer_that_comes_while_a_connection_is_idle_is_not_taken_for_the_next(
    service: Service, client: HealthExClient
) -> None:
    service.answers(keeps(accepted("p-1"), STRANGER, pause=0.1), keeps(accepted("p-2")))
    assert retrievals(client, "p-1") == ["p-1"]
    time.sleep(0.3)
    assert retrievals(client, "p-2") == ["p-2"]
    assert service.connections == 2


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(service: Service, connect: Connect) -> None:
    client = connect(read_timeout=0.2)
    service.answers(keeps(b"", STRANGER, pause=0.3), keeps(accepted("p-2")))
    assert "timed out" in str(ambiguous(client, "p-1"))
    time.sleep(0.5)
    assert retrievals(client, "p-2") == ["p-2"]


@pytest.fixture
def early() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers each head it reads before any body has come."""
    listener, heads, open_connections = socket.create_server(("127.0.0.1", 0)), [], []

    def answer(connection: socket.socket) -> None:
        with connection:
            while head := connection.recv(65536):
                heads.append(head)
                connection.sendall(accepted("early"))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_connections.append(threading.Thread(target=answer, args=(connection,), daemon=True))
            open_connections[-1].start()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
    listener.shutdown(socket.SHUT_RDWR)
    server.join()
    listener.close()


def test_an_answer_to_every_piece_of_a_request_never_reaches_another_patient(
    connect: Connect, early: tuple[str, list[bytes]]
) -> None:
    url, heads = early
    client = connect(base_url=url)
    for number in range(5):
        try:
            client.update_patient(PROJECT, f"p-{number}")
        except HealthExUpdateAmbiguousError:
            continue
    updates = [head for head in heads if head.startswith(b"POST")]
    assert len(updates) == 5


# Everything else about a request that may have gone out is ambiguous

CREATED = b"HTTP/1.1 201 Created\r\n"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (accepted("r", b"Content-Length: 5"), 201),
        (CREATED + b"Content-Length: 5, 6\r\n\r\n{}", 201),
        (CREATED + b"Content-Length: -2\r\n\r\n{}", 201),
        (CREATED + b"Content-Length: 0x2\r\n\r\n{}", 201),
        (CREATED + b"Content-Length: +2\r\n\r\n{}", 201),
        (CREATED + b"Content-Length: 1\r\n 2\r\n\r\n{}", 201),
        (CREATED + b"Content-Length: \r\n\r\n{}", 201),
        (CREATED + b"no colon here\r\nContent-Length: 2\r\n\r\n{}", 201),
        (CREATED + b" folded: first\r\nContent-Length: 2\r\n\r\n{}", 201),
        (CREATED + b"Content-Length : 2\r\n\r\n{}", 201),
        (CREATED + b"A: b\rContent-Length: 2\r\n\r\n{}", 201),
        (CREATED + b"A: b\0\r\nContent-Length: 2\r\n\r\n{}", 201),
        (CREATED + b": nameless\r\nContent-Length: 2\r\n\r\n{}", 201),
        (CREATED + b"A: b\r\n" * 101 + b"Content-Length: 2\r\n\r\n{}", 201),
        (CREATED + b"A: " + b"b" * 70_000 + b"\r\n\r\n", 201),
        (CREATED + b"Content-Length: 2", 201),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 404),
        (b"HTTP/2 201\r\n\r\n{}", None),
        (b"HTTP/1.1 two hundred\r\n\r\n", None),
        (b"HTTP/1.1 2_1 Created\r\n\r\n", None),
        (b"HTTP/1.1 099 Created\r\n\r\n", None),
        (b"HTTP/1.1 1000 Created\r\n\r\n", None),
        (b"HTTP/1.1 201 " + b"x" * 70_000 + b"\r\n\r\n", None),
        (b"SSH-2.0-OpenSSH_9.9\r\n", None),
        (b"\r\n\r\n", None),
        (b"\0" * 10_000, None),
        *(
            (CREATED + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, 201)
            for chunks in (
                b"-2\r\n{}\r\n0\r\n\r\n",
                b"0x2\r\n{}\r\n0\r\n\r\n",
                b"2_0\r\n{}\r\n0\r\n\r\n",
                b"\r\n{}\r\n0\r\n\r\n",
                b"two\r\n{}\r\n0\r\n\r\n",
                b"1\r\n{}\r\n0\r\n\r\n",
                b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n",
                b"2;" + b"x" * 70_000 + b"\r\n{}\r\n0\r\n\r\n",
                b"2\r\n{}\r\n",
            )
        ),
        (CREATED + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 201),
        *(
            (CREATED + b"Content-Length: 2\r\nConnection: close\r\nContent-Encoding: %b\r\n\r\n{}" % coding, 201)
            for coding in (b"gzip", b"deflate", b"gzip, gzip", b"br")
        ),
    ],
)
def test_an_answer_that_is_not_http_is_ambiguous_and_its_connection_dropped(
    service: Service, client: HealthExClient, answer: bytes, status: int | None
) -> None:
    service.answers(raw(answer), keeps(accepted("p-2")))
    before = datetime.now(timezone.utc)
    error = ambiguous(client)
    assert error.status_code == status
    assert error.requested_at is not None
    assert abs(error.requested_at - before) < timedelta(seconds=60)
    assert retrievals(client, "p-2") == ["p-2"]
    assert service.asked() == {PATIENT: 1, "p-2": 1}


def test_an_error_of_our_own_while_reading_is_ambiguous(
    service: Service, client: HealthExClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("unexpected")

    monkeypatch.setattr("requests.adapters.HTTPAdapter.build_response", broken)
    assert "unexpected" not in str(ambiguous(client))
    assert len(service.received) == 1


def test_the_same_length_twice_is_that_length(service: Service, client: HealthExClient) -> None:
    length = accepted("p").split(b"\r\n")[1]
    each_its_own(service, lambda own: accepted(own, length.replace(b"Length: ", b"Length: ")))
    assert retrievals(client, "p", "q") == ["p", "q"]
    assert service.connections == 1


def test_chunks_may_have_extensions_and_trailers(service: Service, client: HealthExClient) -> None:
    each_its_own(
        service,
        lambda own: chunked(own).replace(b"0\r\n\r\n", b"0;a=b\r\nX-Checksum: 1\r\n\r\n"),
    )
    assert retrievals(client, "p-1", "p-2") == ["p-1", "p-2"]
    assert service.connections == 1


# Time


def dripping(data: bytes, first: int) -> Reply:
    """Write what comes after the first bytes one by one."""
    return raw(data[:first], *(data[index : index + 1] for index in range(first, len(data))), pause=0.05)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (lambda: dripping(accepted("r"), 0), None),
        (lambda: dripping(accepted("r"), 30), 201),
        (lambda: dripping(accepted("r"), accepted("r").index(b"{")), 201),
        (lambda: dripping(chunked("r")[:-2] + b"X-Trailer: 1\r\n" * 20, len(chunked("r"))), 201),
        (lambda: dripping(HINTS * 20, 0), None),
        (lambda: raw(*[HINTS] * 60, pause=0.05), None),
    ],
    ids=["status line", "headers", "body", "trailers", "interim head", "interim answers"],
)
def test_the_read_timeout_is_for_the_whole_exchange(
    service: Service, connect: Connect, reply: Callable[[], Reply], status: int | None
) -> None:
    service.answers(reply())
    began = time.monotonic()
    error = ambiguous(connect(read_timeout=0.3))
    took = time.monotonic() - began
    assert error.status_code in (None, status)
    assert took < 1.5


def test_the_connect_timeout_is_for_the_whole_answer_of_a_proxy(
    service: Service, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(connection: socket.socket) -> None:
        with connection:
            try:
                for byte in b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.05)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        client = connect(base_url="https://healthex.invalid", connect_timeout=0.2)
        began = time.monotonic()
        with pytest.raises(HealthExConnectionError, match="never reached"):
            client.update_patient(PROJECT, PATIENT)
        assert time.monotonic() - began < 6  # five tries
        listener.shutdown(socket.SHUT_RDWR)
        server.join()


def test_a_server_that_reads_nothing_is_given_up(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client = connect(base_url=f"http://127.0.0.1:{silent.getsockname()[1]}", read_timeout=0.3)
        began = time.monotonic()
        with pytest.raises(HealthExConnectionError, match="timed out"):
            client.add_patients(PROJECT, [{"firstName": "x" * 20 * 1024**2}])
        assert time.monotonic() - began < 5


def test_the_time_of_one_patient_is_not_counted_for_the_next(service: Service, connect: Connect) -> None:
    client = connect(read_timeout=0.6)

    def slow(request: Received) -> Reply:
        return keeps(b"", accepted(request.patient_id), pause=0.25)

    service.answers_each(slow)
    assert retrievals(client, "p-1", "p-2", "p-3") == ["p-1", "p-2", "p-3"]
    assert service.connections == 1
