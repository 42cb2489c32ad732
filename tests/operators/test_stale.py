"""Which consented patients are stale, by what was delivered to a bucket or an SFTP server."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from helpers.loopback import Service, make_jwt, says
from helpers.operators import connection
from helpers.s3_faults import closed_port_url
from helpers.support import aws_connection
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExConnectionError
from airflow_provider_healthex.operators.healthex import (
    HealthExListConsentedPatientsOperator,
    HealthExListStalePatientsOperator,
)
from airflow_provider_healthex.operators.sftp import HealthExSftpListStalePatientsOperator
from airflow_provider_healthex.sandbox import Sandbox, patients

WEEK = timedelta(days=7)
PATH = "d/{projectId}/{healthexPatientId}/"


@pytest.fixture(scope="module", params=["s3", "sftp"])
def running(request):
    with Sandbox(delay=0.2, delivery=request.param) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running, monkeypatch):
    running.reset()
    for name, value in running.airflow_environment().items():
        monkeypatch.setenv(name, value)
    return running


def operator(sandbox: Sandbox, path: str = PATH, **arguments):
    arguments = {"task_id": "stale", "max_age": WEEK, **arguments}
    if sandbox.delivery == "sftp":
        return HealthExSftpListStalePatientsOperator(path=path, **arguments)
    return HealthExListStalePatientsOperator(bucket_name=sandbox.bucket, bucket_key=path, **arguments)


def stale(sandbox: Sandbox, path: str = PATH, **arguments):
    return operator(sandbox, path, **arguments).execute({})


def consented():
    return HealthExListConsentedPatientsOperator(task_id="listed").execute({})


def test_patients_whose_delivery_is_old_or_missing_are_stale(sandbox):
    assert sorted(stale(sandbox)) == consented()


def test_a_patient_with_one_new_object_is_not_stale(sandbox):
    sandbox.deliver(patients.SEVERAL_FILES)
    sandbox.deliver(patients.FIRST_DELIVERY)
    assert set(consented()) - set(stale(sandbox)) == {patients.SEVERAL_FILES, patients.FIRST_DELIVERY}


def test_nobody_is_stale_whose_delivery_is_younger_than_max_age(sandbox):
    assert stale(sandbox, max_age=timedelta(days=40)) == [patients.FIRST_DELIVERY]


def test_the_other_arguments_are_those_of_listing_consented_patients(sandbox):
    assert patients.CONSENT_ENDS_SOON not in stale(sandbox, min_days_left=30)
    assert {len(chunk) for chunk in stale(sandbox, chunk_size=4)[:-1]} == {4}


def test_max_age_may_be_a_rendered_template(sandbox):
    task = operator(sandbox, max_age="{{ params.age }}")
    task.max_age = str(40 * 24 * 3600)
    assert task.execute({}) == [patients.FIRST_DELIVERY]


@pytest.mark.parametrize("path", ["d/*/{healthexPatientId}/", "d/{projectId}/{healthexPatientId}/*.json"])
def test_a_path_may_be_a_glob(sandbox, path):
    sandbox.deliver(patients.IN_PROGRESS)
    assert set(consented()) - set(stale(sandbox, path, wildcard_match=True)) == {patients.IN_PROGRESS}


def test_the_organization_is_the_tokens(running, sandbox):
    assert sorted(stale(sandbox, "d/{projectId}/{healthexPatientId}/{orgId}/")) == consented()


def test_where_the_storage_refuses_nobody_is_listed(sandbox):
    where = {"bucket_name": "no-such-bucket"} if sandbox.delivery == "s3" else {"path": "nowhere/{healthexPatientId}/"}
    task = operator(sandbox)
    for name, value in where.items():
        setattr(task, name, value)
    with pytest.raises(AirflowFailException, match=r"NoSuchBucket|no folder 'nowhere/'"):
        task.execute({})


def test_a_transient_error_of_the_storage_is_retryable(sandbox, monkeypatch):
    if sandbox.delivery == "sftp":
        port = closed_port_url().rpartition(":")[2]
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", f"sftp://u:p@127.0.0.1:{port}")
    else:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(closed_port_url()))
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(HealthExConnectionError, match=r"did not answer the worker .*nothing is listed"):
        stale(sandbox)


@pytest.fixture
def service(monkeypatch):
    running = Service()
    monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", connection(running.url, make_jwt()))
    yield running
    running.close()


def of_bucket(bucket, **arguments):
    arguments = {"bucket_name": bucket.name, "bucket_key": PATH, "max_age": WEEK, "project_id": "p", **arguments}
    return HealthExListStalePatientsOperator(task_id="stale", **arguments)


def age(bucket, key, days):
    bucket.put(key)
    written = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket.name].keys[key]
    written.last_modified = written.last_modified.replace(microsecond=0, hour=12) - timedelta(days=days)


def answer(*patient_ids):
    return says([{"patientId": each, "consents": [{"hasPatientConsented": True}]} for each in patient_ids])


def test_patients_with_the_newest_object_come_first_and_those_without_one_last(service, bucket):
    service.answers(answer("a", "b", "c", "d", "e", "f"))
    for patient_id, days in (("c", 30), ("d", 10), ("e", 20), ("f", 11), ("b", 1)):
        age(bucket, f"d/p/{patient_id}/x", days)
    age(bucket, "d/p/c/y", 9)
    assert of_bucket(bucket).execute({}) == ["c", "d", "f", "e", "a"]
    assert of_bucket(bucket, max_age=0, chunk_size=4).execute({}) == [["b", "c", "d", "f"], ["e", "a"]]


def test_folder_markers_are_no_delivery(service, bucket):
    service.answers(answer("a", "b"))
    bucket.put("d/p/a/", b"")
    bucket.put("d/p/b/x", b"")
    assert of_bucket(bucket).execute({}) == ["a"]


def test_an_id_that_no_path_can_have_is_stale(service, bucket):
    service.answers(answer("a", "b..c"))
    bucket.put("d/p/a/x")
    assert of_bucket(bucket).execute({}) == ["b..c"]


def test_without_patients_nothing_is_listed(service):
    service.answers(answer())
    task = HealthExListStalePatientsOperator(
        task_id="stale", bucket_name="no-such-bucket", bucket_key=PATH, max_age=1, project_id="p"
    )
    assert task.execute({}) == []


def test_the_bucket_may_be_in_the_url(service, bucket):
    service.answers(answer("a"))
    bucket.put("d/p/a/x")
    assert of_bucket(bucket, bucket_name=None, bucket_key=f"s3://{bucket.name}/{PATH}").execute({}) == []


def test_by_sftp_a_patient_behind_a_symbolic_link_is_left_out(service, sftp, task_log):
    service.answers(answer("a", "b"))
    sftp.put("d/p/b/x", b"{}", modified=time.time() - 30 * 24 * 3600)
    os.symlink(sftp.served / "d/p/b", sftp.served / "d/p/a")
    task = HealthExSftpListStalePatientsOperator(task_id="stale", path=PATH, max_age=WEEK, project_id="p")
    assert task.execute({}) == ["b"]
    assert "left out: 1" in task_log()


@pytest.mark.parametrize("kind", [HealthExListStalePatientsOperator, HealthExSftpListStalePatientsOperator])
@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("d/{projectId}/", {}, "doesn't name the patient"),
        ("d/{externalId}/", {}, "needs {externalId}, which HealthEx's list of consents does not have"),
        ("d/{healthexPatientId}/{externalId}/", {}, "needs {externalId}"),
        ("d/{{healthexPatientId}}/", {}, "single braces"),
        (PATH, {"max_age": -1}, "max_age must be at least 0"),
        (PATH, {"max_age": "soon"}, "max_age must be"),
        (PATH, {"chunk_size": 0}, "chunk_size must be"),
    ],
)
def test_arguments_are_checked_when_the_dag_is_parsed(kind, path, arguments, message):
    where = (
        {"path": path} if kind is HealthExSftpListStalePatientsOperator else {"bucket_name": "b", "bucket_key": path}
    )
    with pytest.raises(HealthExConfigurationError, match=message.replace("{", r"\{")):
        kind(task_id="stale", **{"max_age": WEEK, **where, **arguments})
