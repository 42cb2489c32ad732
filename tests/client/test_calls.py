from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
from helpers.loopback import PATIENT, PROJECT, STARTED, says

from airflow_provider_healthex.client import ClientSettings, HealthExClient, StoredToken
from airflow_provider_healthex.client.calls import Call, identifier, json_body
from airflow_provider_healthex.exceptions import HealthExConfigurationError


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
def test_an_unusable_id_is_rejected_before_anything_is_sent(wire: Any, name: str, value: Any) -> None:
    url, lines = wire
    ids = {"project_id": PROJECT, "patient_id": PATIENT, name: value}
    with (
        HealthExClient(ClientSettings(url, StoredToken("t"))) as client,
        pytest.raises(HealthExConfigurationError, match=name),
    ):
        client.update_patient(**ids)
    assert lines == []


@pytest.mark.parametrize("value", ["é~", "a b", "it's", "007", "a-b_c.d:e"])
def test_an_id_is_returned_as_it_is(value: str) -> None:
    assert identifier("patient_id", value) == value


STRAY = [
    ("\ufeff17d4", "a ZERO WIDTH NO-BREAK SPACE (U+FEFF) at its start (got '\\ufeff17d4')"),
    ("17\u200bd4", "a ZERO WIDTH SPACE (U+200B) as character 3 (got '17\\u200bd4')"),
    ("17d4\xa0", "a NO-BREAK SPACE (U+00A0) at its end (got '17d4\\xa0')"),
    ("17\xa0d4", "a NO-BREAK SPACE (U+00A0) as character 3"),
    ("17\xadd4", "a SOFT HYPHEN (U+00AD) as character 3"),
    (" 17d4", "a SPACE (U+0020) at its start (got ' 17d4')"),
    ("17d4 ", "a SPACE (U+0020) at its end (got '17d4 ')"),
    ("17d4\n", "a control character (U+000A) at its end (got '17d4\\n')"),
    ('"17d4"', "a QUOTATION MARK (U+0022) at its start"),
    ("'17d4", "a APOSTROPHE (U+0027) at its start"),
    ("“17d4”", "a LEFT DOUBLE QUOTATION MARK (U+201C) at its start"),
    ("17d4\u2028", "a LINE SEPARATOR (U+2028) at its end"),
]


@pytest.mark.parametrize(("value", "flaw"), STRAY)
def test_a_character_left_by_a_spreadsheet_is_named_with_its_place(value: str, flaw: str) -> None:
    with pytest.raises(HealthExConfigurationError) as error:
        identifier("patient_ids[3]", value)
    assert str(error.value).startswith(f"patient_ids[3] must not have {flaw}")


@pytest.mark.parametrize("value", [*(value for value, _ in STRAY), "17d4/..", 17, 17.4])
def test_an_external_id_is_rejected_without_being_shown(wire: Any, value: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match=r"^external_id ") as error:
        identifier("external_id", value, shown=False)
    assert "17" not in str(error.value)
    assert error.value.__context__ is None


@pytest.mark.parametrize("value", [694061, 694061.0, True])
def test_a_number_is_rejected_and_not_converted(value: Any) -> None:
    with pytest.raises(HealthExConfigurationError) as error:
        identifier("patient_id", value)
    assert str(error.value).startswith(f"patient_id must be text (got {type(value).__name__} {value!r}): ")
    assert "render_template_as_native_obj" in str(error.value)


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), b"x"])
def test_a_body_without_json_form_is_rejected_without_being_shown(value: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match="no JSON form") as error:
        json_body({"patients": [{"firstName": "Ann", "x": value}]})
    assert "Ann" not in str(error.value)
    assert error.value.__context__ is None


def test_a_call_shows_neither_body_nor_query() -> None:
    call = Call(
        method="POST", template="/x/{a}", ids={"a": "7"}, body=b"hunter2", query={"q": "hunter2"}, private=("hunter2",)
    )
    assert "hunter2" not in f"{call!r} {call}"
    assert str(call) == "POST /x/{a}, a '7'"
    assert call.path == "/x/7?q=hunter2"
