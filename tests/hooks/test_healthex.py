"""From a connection to the API: which connections are accepted, and which are rejected before anything is sent."""

from __future__ import annotations

import json
import socket
import threading
import traceback
import warnings

import pytest
from airflow.providers.common.compat.sdk import Connection

from airflow_provider_healthex.client import ApiKey, PatientUpdate, PatientUpdateFailure, StoredToken
from airflow_provider_healthex.exceptions import (
    HealthExConfigurationError,
    HealthExNotFoundError,
    HealthExTokenError,
)
from airflow_provider_healthex.hooks.connection import client_settings
from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.sandbox import patients


def settings(**fields):
    extra = fields.pop("extra", {})
    connection = {"password": "token-of-the-test", **fields}
    return client_settings(
        Connection(conn_id="healthex_test", conn_type="healthex", extra=json.dumps(extra), **connection)
    )


@pytest.fixture
def connection(monkeypatch):
    def put(**fields):
        monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", json.dumps({"conn_type": "healthex", **fields}))
        return HealthExHook()

    return put


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        (None, None, "https://api.healthex.io"),
        ("", 0, "https://api.healthex.io"),
        ("demo.example.org", None, "https://demo.example.org"),
        ("demo.example.org", 8443, "https://demo.example.org:8443"),
        ("https://demo.example.org/", None, "https://demo.example.org"),
        ("https://demo.example.org:8443/gateway/", None, "https://demo.example.org:8443/gateway"),
        ("http://127.0.0.1:8989", None, "http://127.0.0.1:8989"),
        ("http://localhost", 8989, "http://localhost:8989"),
        ("http://[::1]:8989", None, "http://[::1]:8989"),
    ],
)
def test_the_host_is_a_base_url(host, port, url):
    assert settings(host=host, port=port).base_url == url


@pytest.mark.parametrize(
    "host", ["ftp://x.org", "https://", "https://x.org?a=b", "https://x.org#a", "https://u@x.org", "https://x.org:port"]
)
def test_an_unusable_base_url_is_rejected(host):
    with pytest.raises(HealthExConfigurationError, match=r"^Connection 'healthex_test': the base URL must look like"):
        settings(host=host)


@pytest.mark.parametrize("host", ["https://u:secret-word@x.org", "u:secret-word@x.org", "http://:secret-word@x.org"])
def test_a_password_in_the_host_is_rejected_and_not_shown(host):
    with pytest.raises(HealthExConfigurationError) as caught:
        settings(host=host)
    assert "secret-word" not in str(caught.value)


def test_http_is_rejected_off_this_machine():
    with pytest.raises(HealthExConfigurationError, match="unencrypted"):
        settings(host="http://api.example.org")


def test_http_is_warned_of_where_it_is_allowed(caplog):
    assert settings(host="http://api.example.org", extra={"allow_http": True}).base_url == "http://api.example.org"
    assert "unencrypted" in caplog.text


def test_without_a_login_the_password_is_the_token():
    assert settings().credentials == StoredToken("token-of-the-test")


def test_with_a_login_it_is_the_api_key_and_the_password_its_secret():
    assert settings(login="key").credentials == ApiKey("key", "token-of-the-test")


def test_an_empty_password_is_rejected():
    with pytest.raises(HealthExConfigurationError, match="no password"):
        settings(password=None)


def test_the_extra_is_read_as_the_form_writes_it():
    extra = {"connect_timeout": "3", "read_timeout": 4.5, "requests_per_second": "", "org_id": "org", "verify": "true"}
    read = settings(extra=extra)
    assert (read.connect_timeout, read.read_timeout, read.requests_per_second) == (3, 4.5, None)
    assert (read.org_id, read.verify) == ("org", True)


def test_the_defaults_are_the_documented_ones():
    read = settings()
    assert (read.connect_timeout, read.read_timeout, read.requests_per_second, read.verify) == (10, 120, None, True)


@pytest.mark.parametrize("value", ["soon", -1, 0, True, "inf", "nan"])
def test_a_timeout_that_is_no_number_above_zero_is_rejected(value):
    with pytest.raises(HealthExConfigurationError, match="read_timeout"):
        settings(extra={"read_timeout": value})


def test_verify_is_a_bundle_that_exists(tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    assert settings(extra={"verify": str(bundle)}).verify == str(bundle)
    with pytest.raises(HealthExConfigurationError, match="no file"):
        settings(extra={"verify": str(tmp_path / "missing.pem")})


def test_verify_is_off_for_this_machine_only():
    assert settings(host="https://127.0.0.1:1", extra={"verify": False}).verify is False
    with pytest.raises(HealthExConfigurationError, match="loopback"):
        settings(extra={"verify": "false"})


def test_a_missing_connection_says_how_to_make_it(airflow_database):
    with pytest.raises(HealthExConfigurationError, match=r"no Airflow connection 'nowhere'.*type HealthEx"):
        HealthExHook("nowhere").update_patient_data("patient")


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("healthex://:TOKEN@gateway/healthex", "https://gateway/healthex"),
        ("healthex://:TOKEN@gateway:8443/a/b/", "https://gateway:8443/a/b"),
        ("healthex://:TOKEN@gateway", "https://gateway"),
        ("healthex://:TOKEN@gateway/", "https://gateway"),
        ("healthex://:TOKEN@https%3A%2F%2Fgateway%2Fv2/healthex", "https://gateway/v2/healthex"),
    ],
)
def test_the_path_of_a_uri_is_a_path_prefix(monkeypatch, uri, url):
    monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_TEST", uri)
    assert client_settings(HealthExHook.get_connection("healthex_test")).base_url == url


def test_a_prefix_is_part_of_each_request(healthex_sandbox, monkeypatch):
    uri = healthex_sandbox.api_url.replace("http://", f"healthex://:{healthex_sandbox.token()}@http%3A%2F%2F")
    monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", f"{uri}/gateway")
    ok, text = HealthExHook().test_connection()
    assert not ok
    assert "HTTP 404" in text


def test_a_scheme_in_schema_is_the_scheme():
    assert settings(host="demo.example.org", schema="https").base_url == "https://demo.example.org"
    with pytest.raises(HealthExConfigurationError, match="unencrypted"):
        settings(host="demo.example.org", schema="http")


@pytest.mark.parametrize("schema", ["a?b=c", "../b", "a b"])
def test_an_unusable_path_is_rejected(schema):
    with pytest.raises(HealthExConfigurationError, match="base URL"):
        settings(host="gateway", schema=schema)


@pytest.mark.parametrize("project_id", [694061, 6.5])
def test_a_number_in_extra_is_named_and_to_be_put_in_quotes(healthex_sandbox, connection, project_id):
    hook = connection(host=healthex_sandbox.api_url, password="t", extra=json.dumps({"project_id": project_id}))
    with pytest.raises(
        HealthExConfigurationError, match=rf"'healthex_default': project_id must be text \(got \w+ {project_id}\)"
    ):
        hook.update_patient_data("patient")
    with pytest.raises(
        HealthExConfigurationError, match=r"'healthex_test': org_id must be text \(got int 7\).*Put it in quotes"
    ):
        settings(extra={"org_id": 7})


def test_a_number_for_a_project_is_named_with_its_likely_cause(connection):
    with pytest.raises(HealthExConfigurationError, match=r"got int 694061\).*render_template_as_native_obj"):
        connection(password="t").update_patient_data("patient", project_id=694061)


def test_unknown_keys_of_the_extra_are_warned_of_by_name(caplog):
    settings(extra={"projectid": "p", "jwt": "secret-word", "project_id": "p"})
    assert "'projectid' in its Extra is unknown and ignored: did you mean 'project_id'?" in caplog.text
    assert "'jwt' in its Extra is unknown and ignored" in caplog.text
    assert "secret-word" not in caplog.text


def test_part_of_a_password_in_the_host_is_in_no_cause():
    host = "https://u:secret-" + "word/rest@x.org"  # a traceback shows the source
    with pytest.raises(HealthExConfigurationError) as caught:
        settings(host=host)
    assert "secret-word" not in "".join(traceback.format_exception(caught.value))


def test_a_missing_project_says_where_to_put_it(connection):
    with pytest.raises(HealthExConfigurationError, match="project_id"):
        connection(password="token").update_patient_data("patient")


def test_an_update_is_requested_in_the_connections_project(healthex_sandbox):
    update = HealthExHook().update_patient_data(healthex_sandbox.patients.IN_PROGRESS)
    assert update.project_id == healthex_sandbox.project_id
    assert update.organization_id == healthex_sandbox.org_id
    assert healthex_sandbox.asked(healthex_sandbox.patients.IN_PROGRESS) == 1


def test_the_argument_goes_before_the_connections_project(healthex_sandbox):
    with pytest.raises(HealthExNotFoundError):
        HealthExHook().update_patient_data(healthex_sandbox.patients.IN_PROGRESS, project_id="another")


def test_an_expired_token_is_rejected_before_anything_is_sent(healthex_sandbox, connection):
    hook = connection(host=healthex_sandbox.api_url, password=healthex_sandbox.token(expires_in=-120))
    with pytest.raises(HealthExTokenError, match=r"expired.*\d{4}-\d\d-\d\dT"):
        hook.update_patient_data(healthex_sandbox.patients.IN_PROGRESS, project_id=healthex_sandbox.project_id)
    assert healthex_sandbox.asked(healthex_sandbox.patients.IN_PROGRESS) == 0


class TestTheTestButton:
    def test_it_says_which_organization_answered(self, healthex_sandbox):
        assert HealthExHook().test_connection() == (
            True,
            f"HealthEx answered for organization {healthex_sandbox.org_id}",
        )

    def test_it_touches_no_patient(self, healthex_sandbox):
        HealthExHook().test_connection()
        assert healthex_sandbox.calls("update") == 0

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"password": ""}, "no password"),
            ({"password": "t", "host": "http://127.0.0.1:9"}, "never reached"),
            ({"login": "wrong", "password": "wrong-secret"}, "Check the API key and its secret"),
        ],
    )
    def test_it_never_raises_and_reports_the_error(self, healthex_sandbox, connection, fields, message):
        ok, text = connection(**{"host": healthex_sandbox.api_url, **fields}).test_connection()
        assert not ok
        assert message in text
        assert "wrong-secret" not in text

    def test_it_names_unknown_keys_of_the_extra(self, healthex_sandbox, connection):
        extra = json.dumps({"projectid": "p"})
        fields = {"host": healthex_sandbox.api_url, "password": healthex_sandbox.token(), "extra": extra}
        ok, text = connection(**fields).test_connection()
        assert ok
        assert "'projectid' in its Extra is unknown and ignored: did you mean 'project_id'?" in text

    def test_it_tries_a_host_that_cannot_be_reached_once(self, connection, caplog):
        accepted = []
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def slam():
                while True:
                    try:
                        client, _ = listener.accept()
                    except OSError:
                        return
                    accepted.append(client)
                    client.close()

            server = threading.Thread(target=slam, daemon=True)
            server.start()
            host = f"https://127.0.0.1:{listener.getsockname()[1]}"
            ok, text = connection(host=host, password="t").test_connection()
            listener.shutdown(socket.SHUT_RDWR)
            server.join()
        assert not ok
        assert "never reached" in text
        assert len(accepted) == 1
        assert "Retrying" not in caplog.text

    def test_it_names_the_connection_where_a_person_named_it(self, connection):
        ok, text = connection().test_connection()
        assert not ok
        assert text.startswith("Connection 'healthex_default' has no password.")

    def test_it_does_not_name_a_connection_that_the_button_made_up(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_X7TQ9AB2", "healthex://api.healthex.io")
        assert HealthExHook("x7tQ9aB2").test_connection()[1].startswith("Connection has no password.")


def test_importing_the_hook_warns_of_nothing():
    import importlib

    import airflow_provider_healthex.hooks.healthex as module

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(module)


def test_many_patients_are_requested_at_once(healthex_sandbox):
    ids = [patients.IN_PROGRESS, patients.UNKNOWN, patients.CONSENT_EXPIRED, patients.IN_PROGRESS]
    results = {each.patient_id: each for each in HealthExHook().update_patients_data(ids, max_concurrency=2)}
    assert results.keys() == {patients.IN_PROGRESS, patients.UNKNOWN, patients.CONSENT_EXPIRED}
    assert isinstance(results[patients.IN_PROGRESS], PatientUpdate)
    assert results[patients.CONSENT_EXPIRED].needs_patient
    assert isinstance(results[patients.UNKNOWN], PatientUpdateFailure)
    assert isinstance(results[patients.UNKNOWN].error, HealthExNotFoundError)
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 1


@pytest.mark.parametrize("connected", [True, False])
def test_after_cancel_no_patient_is_requested(healthex_sandbox, connected):
    hook = HealthExHook()
    if connected:
        hook.get_conn()
    hook.cancel()
    assert list(hook.update_patients_data([patients.IN_PROGRESS])) == []
    assert healthex_sandbox.asked(patients.IN_PROGRESS) == 0


def test_patients_are_added_in_the_connections_project(healthex_sandbox):
    ann = {"firstName": "Ann", "lastName": "Example", "contactPreference": "email", "languagePreference": "en"}
    result = HealthExHook().add_patients([{**ann, "email": "ann@example.org"}], suppress_notifications=True)
    assert (result.total_processed, result.error_count) == (1, 0)
    assert healthex_sandbox.calls("patients") == 1


def test_the_consented_patients_are_those_of_the_connections_project(healthex_sandbox):
    found = {each.patient_id: each for each in HealthExHook().list_consented_patients()}
    assert patients.IN_PROGRESS in found
    assert found[patients.CONSENT_ENDS_SOON].expires_at < found[patients.IN_PROGRESS].expires_at


def test_the_usage_is_what_healthex_counts(healthex_sandbox):
    assert isinstance(HealthExHook().usage_summary("2026-01-01", "2026-02-01"), dict)
    assert healthex_sandbox.calls("usage") == 1
