from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from airflow_provider_healthex.client import ClientSettings, HealthExClient, StoredToken
from airflow_provider_healthex.client.calls import Call, identifier, json_body
from airflow_provider_healthex.exceptions import HealthExConfigurationError

from .loopback import PATIENT, PROJECT, STARTED, says


@pytest.fixture
def wire() -> Any:
    """A server that only remembers the first line it was sent, byte by byte."""
    lines: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    body = says(STARTED).body

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                lines.append(connection.recv(65536).split(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", lines
    # close() does not wake it, and a restarted accept() would take the connections of the file number's next owner.
    listener.shutdown(socket.SHUT_RDWR)
    server.join()
    listener.close()


@pytest.mark.parametrize(
    ("patient_id", "segment"),
    [
        (PATIENT, PATIENT),
        ("a%2Fb", "a%252Fb"),
        ("%2E%2E", "%252E%252E"),
        ("a b", "a%20b"),
        ("é✓", "%C3%A9%E2%9C%93"),
        ("a?b=c", "a%3Fb%3Dc"),
        ("a#b", "a%23b"),
        ("a;b", "a%3Bb"),
        ("$a:b@c&d+e", "%24a%3Ab%40c%26d%2Be"),
        ("{projectId}", "%7BprojectId%7D"),
        ("~_.-", "~_.-"),
    ],
)
def test_an_id_stays_one_segment_over_the_wire(wire: Any, patient_id: str, segment: str) -> None:
    url, lines = wire
    with HealthExClient(ClientSettings(f"{url}/prefix", StoredToken("t"))) as client:
        client.update_patient(PROJECT, patient_id)
    path = f"/prefix/v1/projects/{PROJECT}/recruitment/identified-patients/{segment}/$updateData"
    assert lines == [f"POST {path} HTTP/1.1".encode()]


TEXTS = [".", "..", "", "  ", "a\nb", "a\x00", "\x7f", "\ud800"]
PATHS = ["a/b", "a/../b", "../../link", "/", "a\\..\\b", "...", "http://evil.example"]


@pytest.mark.parametrize(
    "value", [".", "..", "", "  ", None, 7, b"a", ["a"], "a\nb", "a\x00", "\x7f", "\ud800", *PATHS]
)
@pytest.mark.parametrize("name", ["project_id", "patient_id"])
def test_an_unusable_id_is_refused_before_anything_is_sent(wire: Any, name: str, value: Any) -> None:
    url, lines = wire
    ids = {"project_id": PROJECT, "patient_id": PATIENT, name: value}
    with (
        HealthExClient(ClientSettings(url, StoredToken("t"))) as client,
        pytest.raises(HealthExConfigurationError, match=name),
    ):
        client.update_patient(**ids)
    assert lines == []


def test_an_id_is_returned_as_it_is() -> None:
    assert identifier("patient_id", " é~") == " é~"


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), b"x"])
def test_a_body_without_json_form_is_refused_without_being_repeated(value: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match="no JSON form") as error:
        json_body({"patients": [{"firstName": "Ann", "x": value}]})
    assert "Ann" not in str(error.value)
    assert error.value.__context__ is None


def test_a_call_shows_neither_body_nor_query() -> None:
    call = Call("POST", "/x/{a}", ids={"a": "7"}, body=b"hunter2", query={"q": "hunter2"}, private=("hunter2",))
    assert "hunter2" not in f"{call!r} {call}"
    assert str(call) == "POST /x/{a}, a '7'"
    assert call.path == "/x/7?q=hunter2"
