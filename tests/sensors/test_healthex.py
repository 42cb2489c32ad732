"""The arrival sensor against a real S3 server, in each of its modes."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
)
from helpers.places import PATH, arguments, update
from helpers.s3_faults import EXPIRED_TOKEN, RESET, SLOW_DOWN, FaultyS3, listing, refusal
from helpers.support import MODES, Bucket, aws_connection, context_of, run_sensor, s3_client, utc_now
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from airflow_provider_healthex.delivery import Waiting
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor


def sensor(bucket: Bucket, mode: str = "poke", **changes) -> HealthExDataArrivalSensor:
    return HealthExDataArrivalSensor(**arguments(mode, **{"bucket_name": bucket.name, "bucket_key": PATH, **changes}))


@pytest.fixture(scope="module")
def full_bucket(s3_endpoint):
    """A bucket with more than one page of a patient's objects."""
    bucket = Bucket("full-bucket", s3_endpoint, s3_client(s3_endpoint))
    bucket.client.create_bucket(Bucket=bucket.name)
    for number in range(1_005):  # without requests, which would take seconds
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket.name, f"d/project-1/patient-1/{number:05}.json", b"1")
    return bucket


def test_an_old_delivery_lets_a_key_sensor_pass_and_not_this_one(bucket, later):
    old = bucket.put("d/project-1/patient-1/bundle.json", b"old")
    foreign = S3KeySensor(
        task_id="foreign", bucket_name=bucket.name, bucket_key="d/project-1/patient-1/*", wildcard_match=True
    )
    assert foreign.poke(context_of(foreign)) is True
    since = old + timedelta(seconds=2)
    ours = sensor(bucket, since=since, patient_id="patient-1", project_id="project-1", clock_skew=0)
    later(3, lambda: bucket.put("d/project-1/patient-1/bundle.json", b"refreshed"))
    assert run_sensor(ours).result["total_bytes"] == len("refreshed")


@pytest.mark.parametrize("mode", MODES)
class TestEveryMode:
    def test_an_object_of_the_baselines_own_second_has_arrived(self, bucket, mode):
        stamp = bucket.put("d/project-1/patient-1/a.json")
        asked = update(requested_at=stamp.isoformat())
        assert run_sensor(sensor(bucket, mode, update=asked, clock_skew=0)).result["object_count"] == 1

    def test_more_than_a_page_of_objects_is_counted_and_the_keys_are_cut(self, bucket, full_bucket, mode):
        asked = update(requested_at=(utc_now() - timedelta(minutes=5)).isoformat())

        result = run_sensor(sensor(full_bucket, mode, update=asked)).result

        assert result["object_count"] == 1_005
        assert len(result["keys"]) == 1_000
        assert result["keys_truncated"] is True
        assert result["keys"] == sorted(result["keys"])

    def test_a_glob_and_a_url(self, bucket, mode):
        bucket.put("d/patient-1/a.xml")
        bucket.put("d/patient-1/1/b.json")
        url = f"s3://{bucket.name}/d/{{healthexPatientId}}/?/*.json"

        result = run_sensor(sensor(bucket, mode, bucket_name=None, bucket_key=url, wildcard_match=True)).result

        assert result["keys"] == ["d/patient-1/1/b.json"]


def test_a_bucket_deleted_while_deferred_fails_with_soft_fail_too(bucket):
    def delete() -> None:
        bucket.clear()
        bucket.client.delete_bucket(Bucket=bucket.name)

    with pytest.raises(AirflowFailException, match="NoSuchBucket to the triggerer"):
        run_sensor(sensor(bucket, "deferred", soft_fail=True), before_trigger=delete)


def test_it_is_an_s3_key_sensor():
    assert issubclass(HealthExDataArrivalSensor, S3KeySensor)


@pytest.mark.parametrize(
    "argument",
    [
        {"check_fn": bool},
        {"use_regex": True},
        {"metadata_keys": ["Size"]},
    ],
)
def test_another_way_to_decide_is_refused(bucket, argument):
    with pytest.raises(HealthExConfigurationError, match=next(iter(argument))):
        sensor(bucket, **argument)


MISTAKES = [
    ({"bucket_name": None}, "No bucket"),
    ({"bucket_name": ""}, "No bucket"),
    ({"bucket_name": None, "bucket_key": "s3:///d/{healthexPatientId}/"}, "No bucket"),
    ({"bucket_key": "s3://other/d/"}, "one of the two"),
    ({"bucket_name": None, "bucket_key": ["s3://one/d/", "s3://two/d/"]}, "one bucket"),
    ({"manifest_key": "s3://bucket/manifest"}, "no URL"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *MISTAKES,
        ({"bucket_name": None, "bucket_key": "d/{{ params.day }}/"}, "No bucket"),
        ({"bucket_name": None, "bucket_key": ["s3://one/d/", "{{ params.path }}", "s3://two/d/"]}, "one bucket"),
        ({"botocore_config": object()}, "botocore_config must be a dict"),
    ],
)
def test_a_literal_argument_that_cannot_be_used_is_refused_when_the_dag_is_parsed(bucket, arguments, message):
    with pytest.raises(HealthExConfigurationError, match=message):
        sensor(bucket, **arguments)


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_rendered_argument_that_cannot_be_used_fails_for_good_and_says_how_to_write_it(
    bucket, arguments, message, soft_fail
):
    waiting = sensor(bucket, soft_fail=soft_fail)
    for name, value in arguments.items():
        setattr(waiting, name, value)
    with pytest.raises(AirflowFailException, match=message) as caught:
        run_sensor(waiting)
    assert isinstance(caught.value.__cause__, HealthExConfigurationError)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bucket_name": None, "bucket_key": "s3://{{ params.bucket }}/d/{healthexPatientId}/"},
        {"bucket_name": None, "bucket_key": "{{ params.path }}"},
        {"bucket_name": "{{ params.bucket }}"},
        {"aws_conn_id": None},
        {"verify": False},
        {"region_name": "eu-central-1"},
    ],
)
def test_what_a_template_hides_is_left_to_the_worker(bucket, arguments):
    sensor(bucket, **arguments)


@pytest.mark.parametrize("mode", MODES)
class TestTrouble:
    """With botocore's own repetition off, so that each refusal is seen."""

    @pytest.fixture
    def s3(self, monkeypatch):
        with FaultyS3() as server:
            monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(server.endpoint_url))
            yield server

    @staticmethod
    def waiting(mode, **changes):
        bucket = Bucket("bucket", "", None)
        config = {"retries": {"total_max_attempts": 1}, "connect_timeout": 2, "read_timeout": 2}
        return sensor(bucket, mode, botocore_config=config, **changes)

    def test_a_503_and_a_reset_in_the_middle_of_the_wait_change_nothing(self, s3, mode):
        key, old = "d/project-1/patient-1/a.json", utc_now() - timedelta(days=30)
        s3.script(listing(key, modified=old), SLOW_DOWN, RESET, listing(key), listing(key))
        assert run_sensor(self.waiting(mode)).result["keys"] == [key]

    def test_a_503_at_first_changes_nothing(self, s3, mode):
        key = "d/project-1/patient-1/a.json"
        s3.script(SLOW_DOWN, listing(key), listing(key))
        assert run_sensor(self.waiting(mode)).result["keys"] == [key]

    def test_expired_credentials_are_waited_for(self, s3, mode):
        key = "d/project-1/patient-1/a.json"
        s3.script(EXPIRED_TOKEN, listing(key), listing(key))
        assert run_sensor(self.waiting(mode)).result["keys"] == [key]

    @pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
    def test_a_refusal_at_first_fails_for_good_with_soft_fail_too(self, s3, mode, code):
        s3.script(refusal(403, code))
        with pytest.raises(AirflowFailException, match=f"{code} to the worker .*bucket 'bucket'"):
            run_sensor(self.waiting(mode, soft_fail=True))
        assert len(s3.requests) == 1


def test_a_worker_that_cannot_see_what_the_triggerer_saw_keeps_to_the_deadline(bucket, monkeypatch):
    """A defer at each return would go on for ever, as with S3KeySensor."""
    bucket.put("d/project-1/patient-1/a.json")
    waiting = sensor(bucket, "deferred", timeout=1.5, poke_interval=0.3)

    def throttled(self, steps):
        return Waiting("S3 did not answer the worker (SlowDown), asking again")

    monkeypatch.setattr("airflow_provider_healthex.storage.s3.Bucket.run", throttled)
    began = time.monotonic()
    with pytest.raises(AirflowSensorTimeout, match="SlowDown"):
        run_sensor(waiting)
    assert time.monotonic() - began < 15


def test_access_denied_after_an_unanswered_poke_is_final_in_reschedule_mode_too(monkeypatch):
    with FaultyS3() as s3:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(s3.endpoint_url))
        s3.script(SLOW_DOWN, refusal(403, "AccessDenied"))
        with pytest.raises(AirflowFailException, match="AccessDenied"):
            run_sensor(TestTrouble.waiting("reschedule", soft_fail=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_certificate_that_is_not_trusted_is_not_waited_for(certificate, monkeypatch, mode):
    with FaultyS3(certificate) as s3:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(s3.endpoint_url))
        with pytest.raises(AirflowFailException, match="check the endpoint's certificate"):
            run_sensor(TestTrouble.waiting(mode, timeout=5))
