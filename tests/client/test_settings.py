from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_healthex.client import ApiKey, ClientSettings, StoredToken
from airflow_provider_healthex.exceptions import HealthExConfigurationError

URL, TOKEN = "https://api.healthex.io", StoredToken("opaque-token")


@pytest.mark.parametrize("url", [URL, f"{URL}/", "http://127.0.0.1:8080", "https://[::1]:8443/demo/api"])
def test_a_base_url_is_kept_without_its_trailing_slash(url: str) -> None:
    assert ClientSettings(url, TOKEN).base_url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.healthex.io",
        "ftp://api.healthex.io",
        "https://",
        "https://user:hunter2@api.healthex.io",
        f"{URL}?a=hunter2",
        f"{URL}#hunter2",
        f"{URL}/../hunter2",
        f"{URL}:port",
        f"{URL}\n",
        "https://api healthex.io",
        "https://[::1",
        None,
    ],
)
def test_an_unusable_base_url_is_rejected_without_being_shown(url: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match=r"must look like https://api\.healthex\.io") as error:
        ClientSettings(url, TOKEN)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("token", ["", "  ", None, "two words", "line\nbreak", "über"])
def test_a_token_that_cannot_be_sent_is_rejected_without_being_shown(token: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match="token") as error:
        StoredToken(token)
    assert "words" not in str(error.value)


def test_whitespace_around_a_pasted_secret_is_dropped() -> None:
    assert StoredToken(" abc\n").token == "abc"
    assert ApiKey("key ", " secret\n") == ApiKey("key", "secret")


@pytest.mark.parametrize(("key", "secret"), [("", "s"), ("k", ""), ("k", None)])
def test_an_api_key_needs_both_parts(key: Any, secret: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match="empty"):
        ApiKey(key, secret)


@pytest.mark.parametrize("name", ["connect_timeout", "read_timeout", "requests_per_second"])
@pytest.mark.parametrize("value", [0, -1, True, "1", float("nan"), float("inf")])
def test_a_number_must_be_one_above_zero(name: str, value: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match=name):
        ClientSettings(URL, TOKEN, **{name: value})


@pytest.mark.parametrize("value", [1, "", "soon"])
def test_verify_must_be_a_boolean_or_a_file(value: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match="verify must be true, false or the path"):
        ClientSettings(URL, TOKEN, verify=value)


def test_verify_false_is_for_loopback_hosts_only() -> None:
    assert ClientSettings("https://127.0.0.1:1", TOKEN, verify=False).verify is False
    with pytest.raises(HealthExConfigurationError, match="loopback"):
        ClientSettings(URL, TOKEN, verify=False)


def test_http_is_for_loopback_hosts_or_where_it_is_allowed(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(HealthExConfigurationError, match=r"unencrypted to 'http://api\.example\.org'"):
        ClientSettings("http://api.example.org", TOKEN)
    ClientSettings("http://127.0.0.1:8080", TOKEN)
    assert caplog.text == ""
    ClientSettings("http://api.example.org", TOKEN, allow_http=True)
    assert "unencrypted" in caplog.text


@pytest.mark.parametrize("value", ["", 7])
def test_an_organization_must_be_text(value: Any) -> None:
    with pytest.raises(HealthExConfigurationError, match="org_id"):
        ClientSettings(URL, TOKEN, org_id=value)


def test_a_missing_ca_bundle_is_named() -> None:
    with pytest.raises(HealthExConfigurationError, match="/no/such/bundle"):
        ClientSettings(URL, TOKEN, verify="/no/such/bundle")


@pytest.mark.parametrize("credentials", [StoredToken("hunter2"), ApiKey("key", "hunter2")])
def test_no_secret_shows(credentials: Any) -> None:
    settings = ClientSettings(URL, credentials)
    assert "hunter2" not in f"{settings!r} {settings} {credentials!r} {credentials}"
