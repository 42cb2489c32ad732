from __future__ import annotations

import json
import time

import pytest
from helpers.loopback import make_jwt

from airflow_provider_healthex.client.redaction import LONGEST_DETAIL, clean, detail


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"message": "Forbidden resource", "error": "Forbidden", "statusCode": 403}', "Forbidden resource"),
        (b'{"message": ["a must be b", {"email": "x"}, "c is empty"]}', "a must be b; c is empty"),
        (b'{"error": "Forbidden"}', "Forbidden"),
        (b'{"message": {"name": "Ann"}, "error": "Bad Request"}', "Bad Request"),
        (b"Recruitment not found", "Recruitment not found"),
        (b"", ""),
        (b"<!DOCTYPE html><html><style>p {}</style><h1>502</h1>\n<p>Bad&nbsp;Gateway</p></html>", "502 Bad Gateway"),
        (b"\xff\xfe binary", "binary"),
    ],
)
def test_the_service_is_quoted_in_its_own_words(body: bytes, expected: str) -> None:
    assert detail(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"patients": [{"firstName": "Ann"}]}',
        b'[{"firstName": "Ann"}]',
        b'"Ann"',
        b'{"firstName": "Ann", "lastNa',
        b"\xef\xbb\xbf {'firstName': 'Ann'}",
        b"<Patient><name>Ann</name></Patient>",
        b"[" * 100_000,
    ],
)
def test_a_possible_record_is_not_quoted(body: bytes) -> None:
    assert detail(body) == ""


def test_control_characters_and_line_breaks_are_gone() -> None:
    assert clean("a\r\nb\x1b[31mc\x00\u202ed\u2028e\ud800") == "a b[31mcd e"


def test_a_long_text_is_cut() -> None:
    assert len(clean("word " * 10_000)) == LONGEST_DETAIL


@pytest.mark.parametrize("page", ["a" * 2**20, "a." * 2**19, "<" * 2**20, "<html>" + "<!--" * 2**18, "a@" * 2**19])
def test_a_hostile_text_takes_no_time(page: str) -> None:
    began = time.monotonic()
    assert len(detail(page.encode())) <= LONGEST_DETAIL
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("template", ["{} is wrong", "token={}&x", "_{}_", '{{"message": "got {}"}}', "Bearer {}"])
def test_known_secrets_are_replaced(template: str) -> None:
    text = detail(template.format("S3cret/With+Signs").encode(), ["S3cret/With+Signs"])
    assert "S3cret" not in text
    assert "***" in text


def test_a_secret_is_found_in_its_quoted_spelling_and_across_line_breaks() -> None:
    assert clean("x a%2Fb%3Dc-9 y", ["a/b=c-9"]) == "x *** y"
    assert clean("x long  secret\ntext y", ["long secret\ttext"]) == "x *** y"


def test_a_secret_does_not_survive_being_cut_in_half() -> None:
    secret = "S" * 100
    assert "SS" not in clean("x " * 230 + secret, [secret])
    assert "SS" not in clean("x " * 2030 + secret, [secret])


@pytest.mark.parametrize("text", ["{}", "token {} expired", "x.{}", "{}..."])
def test_anything_shaped_like_a_jwt_is_replaced(text: str) -> None:
    token = make_jwt()
    for shown in (token, token[:30]):
        assert shown[4:] not in clean(text.format(shown))


@pytest.mark.parametrize("text", ["bearer xyz-123", "Authorization: Bearer xyz-123", "Bearer: xyz-123"])
def test_bearer_tokens_are_replaced(text: str) -> None:
    assert "xyz" not in clean(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://app.healthex.io/l/abc?sig=1", "see https://app.healthex.io/***"),
        ("see https://app.healthex.io?sig=1.", "see https://app.healthex.io/***"),
        ("see https://u:p@host:8443/x (now)", "see https://host:8443/*** (now)"),
        ("see https://docs.healthex.io", "see https://docs.healthex.io"),
        ("see app.healthex.io/l/abc", "see app.healthex.io/***"),
        ("Cannot POST /v1/projects", "Cannot POST /v1/projects"),
        ("ann@example.com is taken", "*** is taken"),
    ],
)
def test_links_and_addresses_are_cut(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_a_short_name_is_replaced_only_as_a_word() -> None:
    assert clean("also Al, AL and Alice", ["Al"]) == "also ***, *** and Alice"


def test_json_escapes_hide_no_secret() -> None:
    body = json.dumps({"message": "got s\u00e9cret-9"}).encode()
    assert detail(body, ["s\u00e9cret-9"]) == "got ***"
