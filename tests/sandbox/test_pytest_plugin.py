from __future__ import annotations

import os

import pytest

pytest_plugins = ["pytester"]

PLUGIN = "airflow_provider_healthex.sandbox.pytest_plugin"


def test_the_fixture_connects_and_starts_each_test_afresh(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import json, os
        import requests

        HOSTS = set()

        def update(sandbox, patient_id):
            connection = json.loads(os.environ["AIRFLOW_CONN_HEALTHEX_DEFAULT"])
            HOSTS.add(connection["host"])
            return requests.post(
                f"{connection['host']}/v1/projects/{sandbox.project_id}/recruitment/identified-patients/"
                f"{patient_id}/$updateData",
                json={}, headers={"Authorization": f"Bearer {sandbox.token()}"}, timeout=10,
            )

        def test_updates(healthex_sandbox):
            patient_id = healthex_sandbox.patients.IN_PROGRESS
            healthex_sandbox.faults.add("update", 500)
            healthex_sandbox.faults.add("update", 503)
            assert update(healthex_sandbox, patient_id).status_code == 500
            assert healthex_sandbox.asked(patient_id) == 1
            assert healthex_sandbox.deliver(patient_id) == ["d/project-demo/patient-in-progress/bundle.json"]
            healthex_sandbox.s3_client().put_object(Bucket=healthex_sandbox.bucket, Key="mine", Body=b"")

        def test_is_afresh_at_the_same_address(healthex_sandbox):
            assert healthex_sandbox.org_id == "org-demo"
            assert healthex_sandbox.asked(healthex_sandbox.patients.IN_PROGRESS) == 0
            assert update(healthex_sandbox, healthex_sandbox.patients.IN_PROGRESS).status_code == 201
            assert len(HOSTS) == 1
            rows = healthex_sandbox.s3_client().list_objects_v2(Bucket=healthex_sandbox.bucket)["Contents"]
            assert "mine" not in [row["Key"] for row in rows]
            healthex_sandbox.wait_until_delivered()

        def test_without_it_nothing_is_set():
            assert "AIRFLOW_CONN_HEALTHEX_DEFAULT" not in os.environ
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)
    assert "AIRFLOW_CONN_HEALTHEX_DEFAULT" not in os.environ


def test_the_settings_can_be_overridden(pytester: pytest.Pytester):
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session")
        def healthex_sandbox_settings():
            return {"path": "healthex/{orgId}/{externalId}/", "delay": 0.1}
        """
    )
    pytester.makepyfile(
        """
        def test_path(healthex_sandbox):
            assert healthex_sandbox.path == "healthex/{orgId}/{externalId}/"
            assert healthex_sandbox.deliver("patient-partial") == ["healthex/org-demo/ext-partial/bundle.json"]
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_deliveries_can_come_by_sftp(pytester: pytest.Pytester):
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session")
        def healthex_sandbox_settings():
            return {"delivery": "sftp", "delay": 0.1}
        """
    )
    pytester.makepyfile(
        """
        import os

        def test_connection(healthex_sandbox):
            assert "AIRFLOW_CONN_AWS_DEFAULT" not in os.environ
            assert healthex_sandbox.sftp_server.host_key in os.environ["AIRFLOW_CONN_SFTP_DEFAULT"]
            assert len(healthex_sandbox.files("patient-in-progress")) == 1
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_it_is_found_in_a_folder_with_its_own_conftest(pytester: pytest.Pytester):
    """``pytest_plugins`` may stand in the topmost conftest.py alone: without it there is nothing to put there."""
    folder = pytester.mkdir("below")
    (folder / "conftest.py").write_text("X = 1\n")
    (folder / "test_below.py").write_text("def test_it(healthex_sandbox): assert healthex_sandbox.api_url\n")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_a_conftest_that_names_it_works(pytester: pytest.Pytester):
    pytester.makeconftest(f'pytest_plugins = ["{PLUGIN}"]')
    pytester.makepyfile("def test_it(healthex_sandbox): assert healthex_sandbox.api_url")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_without_its_use_nothing_is_imported(pytester: pytest.Pytester):
    heavy = {"airflow", "asyncssh", "boto3", "cryptography", "flask", "jwt", "moto", "requests"}
    pytester.makepyfile(
        f"""
        import sys

        def test_it(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("{PLUGIN}")
            assert not {heavy!r} & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:anyio").assert_outcomes(passed=1)


def test_without_the_extra_only_its_use_fails_and_names_it(pytester: pytest.Pytester):
    pytester.makeconftest("import sys; sys.modules['flask'] = None")
    pytester.makepyfile(
        """
        def test_without(): pass
        def test_with(healthex_sandbox): pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*needs flask: pip install 'airflow-provider-healthex[[]sandbox]'"])
