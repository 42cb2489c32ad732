"""The arrival sensor against a real S3 server, in each of its modes."""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    Asset,
)
from s3_faults import EXPIRED_TOKEN, RESET, SLOW_DOWN, FaultyS3, listing, refusal
from support import MODES, Bucket, aws_connection, context_of, run_sensor, s3_client, utc_now

from airflow_provider_healthex.delivery import Waiting
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError, HealthExPatientActionNeeded
from airflow_provider_healthex.sensors.healthex import HealthExDataArrivalSensor

PATH = "d/{projectId}/{healthexPatientId}/"


def update(**changes):
    return {
        "project_id": "project-1",
        "patient_id": "patient-1",
        "organization_id": "org-1",
        "message": "IN_PROGRESS_NO_ACTION_NEEDED",
        "patient_action_needed_reason": None,
        "retrieval_id": None,
        "skipped_facilities_count": 0,
        "counts": {},
        "requested_at": utc_now().replace(microsecond=0).isoformat(),
        **changes,
    }


def sensor(bucket: Bucket, mode: str = "poke", **changes) -> HealthExDataArrivalSensor:
    arguments = {
        "task_id": "arrival",
        "bucket_name": bucket.name,
        "bucket_key": PATH,
        "quiet_period": 0,
        "poke_interval": 0.2,
        "timeout": 20,
        "mode": "poke" if mode == "deferred" else mode,
        "deferrable": mode == "deferred",
        **changes,
    }
    if "update" not in arguments and "since" not in arguments:
        arguments["update"] = update()
    return HealthExDataArrivalSensor(**arguments)


@pytest.fixture
def later():
    """Do something after a while, as the world does while a sensor waits."""
    threads = []

    def start(seconds: float, action) -> None:
        def run() -> None:
            time.sleep(seconds)
            action()

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)

    yield start
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def full_bucket(s3_endpoint):
    """A bucket with more than one page of a patient's objects."""
    bucket = Bucket("full-bucket", s3_endpoint, s3_client(s3_endpoint))
    bucket.client.create_bucket(Bucket=bucket.name)
    for number in range(1_005):
        bucket.client.put_object(Bucket=bucket.name, Key=f"d/project-1/patient-1/{number:05}.json", Body=b"1")
    return bucket


def after(moment, seconds=5):
    """A baseline that is later than a moment by more than the allowed skew, without waiting for it."""
    return (moment + timedelta(seconds=seconds)).isoformat()


@pytest.mark.parametrize("mode", MODES)
class TestEveryMode:
    def test_an_old_delivery_is_ignored_and_its_overwrite_arrives(self, bucket, mode, later):
        old = bucket.put("d/project-1/patient-1/bundle.json", b"old")
        since = old + timedelta(seconds=4)
        foreign = S3KeySensor(
            task_id="foreign", bucket_name=bucket.name, bucket_key="d/project-1/patient-1/*", wildcard_match=True
        )
        assert foreign.poke(context_of(foreign)) is True
        ours = sensor(bucket, mode, since=since, patient_id="patient-1", project_id="project-1", clock_skew=0)
        later(5, lambda: bucket.put("d/project-1/patient-1/bundle.json", b"refreshed"))

        started = time.monotonic()
        run = run_sensor(ours)

        assert time.monotonic() - started > 3
        assert run.result["keys"] == ["d/project-1/patient-1/bundle.json"]
        assert run.result["total_bytes"] == len("refreshed")
        assert run.deferrals == (1 if mode == "deferred" else 0)
        assert bool(run.reschedules) is (mode == "reschedule")

    def test_the_result_says_what_arrived(self, bucket, mode):
        stamp = bucket.put("d/project-1/patient-1/a.json", b"12")
        bucket.put("d/project-1/patient-1/deep/er/b.json", b"345")
        bucket.put("d/project-1/patient-1/folder/", b"")
        bucket.put("d/project-1/patient-10/c.json")
        asked = update(requested_at=stamp.isoformat())

        result = run_sensor(sensor(bucket, mode, update=asked)).result

        assert result == {
            "bucket": bucket.name,
            "prefix": "d/project-1/patient-1/",
            "uri": f"s3://{bucket.name}/d/project-1/patient-1/",
            "patient_id": "patient-1",
            "project_id": "project-1",
            "since": asked["requested_at"],
            "keys": ["d/project-1/patient-1/a.json", "d/project-1/patient-1/deep/er/b.json"],
            "keys_truncated": False,
            "object_count": 2,
            "total_bytes": 5,
            "first_modified": stamp.isoformat(),
            "last_modified": result["last_modified"],
            "manifest": None,
        }

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

    def test_several_files_arrive_when_they_have_paused(self, bucket, mode, later):
        prefix = "d/project-1/patient-1/"
        bucket.put(prefix + "1.json")
        later(1.5, lambda: bucket.put(prefix + "2.json"))

        result = run_sensor(sensor(bucket, mode, quiet_period=3)).result

        assert result["object_count"] == 2

    def test_a_marker_ends_the_wait_and_is_not_data(self, bucket, mode, later):
        prefix = "d/project-1/patient-1/"
        bucket.put(prefix + "1.json")
        later(1, lambda: bucket.put(prefix + "_SUCCESS", b""))

        result = run_sensor(sensor(bucket, mode, marker="_SUCCESS", quiet_period=3600)).result

        assert result["keys"] == [prefix + "1.json"]

    def test_a_list_needs_every_entry(self, bucket, mode, later):
        bucket.put("a/patient-1/1.json")
        later(1, lambda: bucket.put("b/patient-1/1.json"))
        keys = ["a/{healthexPatientId}/", "b/{healthexPatientId}/"]

        result = run_sensor(sensor(bucket, mode, bucket_key=keys)).result

        assert result["keys"] == ["a/patient-1/1.json", "b/patient-1/1.json"]
        assert result["prefix"] == ""

    def test_an_exact_key_is_not_its_longer_namesake(self, bucket, mode, later):
        bucket.put("d/patient-1.json.part")
        later(1, lambda: bucket.put("d/patient-1.json"))

        result = run_sensor(sensor(bucket, mode, bucket_key="d/{healthexPatientId}.json")).result

        assert result["keys"] == ["d/patient-1.json"]

    def test_a_glob_and_a_url(self, bucket, mode):
        bucket.put("d/patient-1/a.xml")
        bucket.put("d/patient-1/1/b.json")
        url = f"s3://{bucket.name}/d/{{healthexPatientId}}/?/*.json"

        result = run_sensor(sensor(bucket, mode, bucket_name=None, bucket_key=url, wildcard_match=True)).result

        assert result["keys"] == ["d/patient-1/1/b.json"]

    def test_with_old_keys_it_times_out_at_its_timeout(self, bucket, mode, airflow_database):
        old = bucket.put("d/project-1/patient-1/bundle.json")
        waiting = sensor(bucket, mode, update=update(requested_at=after(old)), timeout=1.5, poke_interval=2)
        started = time.monotonic()
        with pytest.raises(AirflowSensorTimeout, match=r"Last seen: 1 object under .* is older than the request"):
            run_sensor(waiting)
        assert 1.5 <= time.monotonic() - started < 1.5 + 2  # within one poke interval

    def test_soft_fail_skips_a_timeout(self, bucket, mode, airflow_database):
        with pytest.raises(AirflowSkipException):
            run_sensor(sensor(bucket, mode, timeout=0.5, soft_fail=True))

    def test_soft_fail_does_not_hide_a_missing_bucket(self, bucket, mode):
        with pytest.raises(AirflowFailException, match=r"worker listing bucket 'no-such-bucket'.*NoSuchBucket"):
            run_sensor(sensor(bucket, mode, bucket_name="no-such-bucket", soft_fail=True))

    def test_the_manifest_lists_every_object(self, bucket, mode):
        stamp = bucket.put("d/project-1/patient-1/a.json", b"12")
        waiting = sensor(bucket, mode, manifest_key="manifests/{healthexPatientId}.jsonl")

        result = run_sensor(waiting).result

        assert result["manifest"] == f"s3://{bucket.name}/manifests/patient-1.jsonl"
        body = bucket.client.get_object(Bucket=bucket.name, Key="manifests/patient-1.jsonl")["Body"].read()
        (line,) = [json.loads(line) for line in body.splitlines()]
        assert line["uri"] == f"s3://{bucket.name}/d/project-1/patient-1/a.json"
        assert line["size"] == 2
        assert line["last_modified"] == stamp.isoformat()
        assert line["patient_id"] == "patient-1"
        assert '"' not in line["etag"]


def test_a_bucket_deleted_while_deferred_fails_with_soft_fail_too(bucket):
    def delete() -> None:
        bucket.clear()
        bucket.client.delete_bucket(Bucket=bucket.name)

    with pytest.raises(AirflowFailException, match="triggerer listing bucket"):
        run_sensor(sensor(bucket, "deferred", soft_fail=True), before_trigger=delete)


def test_it_is_an_s3_key_sensor():
    assert issubclass(HealthExDataArrivalSensor, S3KeySensor)


@pytest.mark.parametrize(
    "argument",
    [
        {"check_fn": bool},
        {"use_regex": True},
        {"metadata_keys": ["Size"]},
        {"silent_fail": True},
        {"never_fail": True},
    ],
)
def test_another_way_to_decide_or_to_fail_is_refused(bucket, argument):
    with pytest.raises(HealthExConfigurationError, match=next(iter(argument))):
        sensor(bucket, **argument)


def test_neither_update_nor_since_is_refused_when_the_dag_is_parsed(bucket):
    with pytest.raises(HealthExConfigurationError, match="existence proves nothing"):
        sensor(bucket, update=None)


@pytest.mark.parametrize("path", ["d/{{orgId}}/", "d/{{ projectId }}/", "d/${projectId}/", "d/<healthexPatientId>/"])
def test_healthexs_own_template_is_refused_when_the_dag_is_parsed(bucket, path):
    with pytest.raises(HealthExConfigurationError, match="single braces"):
        sensor(bucket, bucket_key=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bucket_key": "d/{patient}/"}, r"none of its variables"),
        ({"bucket_key": "d/{externalId}/"}, r"external_id"),
        ({"bucket_key": "d/{healthexPatientId}*", "wildcard_match": True}, r"begins or ends alike"),
        ({"bucket_name": None}, "No bucket"),
        ({"bucket_key": "s3://other/d/"}, "one of the two"),
        ({"bucket_name": None, "bucket_key": ["s3://one/d/", "s3://two/d/"]}, "one bucket"),
        ({"since": "2026-11-22T17:40:05"}, "time zone"),
        ({"since": "yesterday"}, "ISO 8601"),
        ({"update": [update(), update()]}, r"expand\(update=refresh.output\)"),
        ({"update": "{{ ti.xcom_pull('refresh') }}"}, "a string"),
        ({"update": {"in_progress": []}}, "HealthExCohortArrivalSensor"),
        ({"update": {"something": "else"}}, "a dict"),
        ({"patient_id": "../other"}, r"'\.\.'|'/'"),
        ({"patient_id": "pat*"}, r"'\*'"),
        ({"bucket_key": "d/{healthexPatientId}.json", "marker": "_SUCCESS"}, "exact key"),
        ({"bucket_key": "d/{healthexPatientId}.json", "min_objects": 2}, "one object"),
        ({"manifest_key": "d/{projectId}/{healthexPatientId}/manifest"}, "outside the path"),
        ({"manifest_key": "s3://bucket/manifest"}, "no URL"),
    ],
)
@pytest.mark.parametrize("soft_fail", [False, True])
def test_an_argument_that_cannot_be_used_fails_for_good_and_says_how_to_write_it(bucket, arguments, message, soft_fail):
    with pytest.raises(AirflowFailException, match=message) as caught:
        run_sensor(sensor(bucket, soft_fail=soft_fail, **arguments))
    assert isinstance(caught.value.__cause__, HealthExConfigurationError)


def test_an_external_id_that_cannot_be_used_is_not_repeated_in_the_error(bucket):
    with pytest.raises(AirflowFailException) as caught:
        run_sensor(sensor(bucket, bucket_key="d/{externalId}/", external_id="MRN/4711"))
    assert "4711" not in str(caught.value)


def test_a_path_without_the_patient_is_warned_of(bucket, task_log):
    bucket.put("d/project-1/a.json")
    run_sensor(sensor(bucket, bucket_key="d/{projectId}/"))
    assert "does not name the patient" in task_log()


class TestPatientAction:
    needed = {"message": "PATIENT_ACTION_NEEDED", "patient_action_needed_reason": "CONSENT_EXPIRED"}

    def test_fail(self, bucket):
        with pytest.raises(AirflowFailException, match="CONSENT_EXPIRED") as caught:
            run_sensor(sensor(bucket, update=update(**self.needed), soft_fail=True))
        assert isinstance(caught.value.__cause__, HealthExPatientActionNeeded)

    def test_skip(self, bucket):
        with pytest.raises(AirflowSkipException):
            run_sensor(sensor(bucket, update=update(**self.needed), on_patient_action="skip"))

    def test_wait_keeps_the_baseline(self, bucket):
        bucket.put("d/project-1/patient-1/a.json")
        asked = update(**self.needed)
        result = run_sensor(sensor(bucket, update=asked, on_patient_action="wait")).result
        assert result["since"] == asked["requested_at"]


def test_the_log_says_at_every_poke_why_it_waits_and_shows_no_key(bucket, task_log):
    old = bucket.put("d/project-1/ext-secret/bundle-secret.json")
    waiting = sensor(
        bucket,
        bucket_key="d/{projectId}/{externalId}/",
        external_id="ext-secret",
        update=update(requested_at=after(old)),
        timeout=0.5,
    )
    with pytest.raises(AirflowSensorTimeout):
        run_sensor(waiting)
    lines = [line for line in task_log().splitlines() if "Waiting for" in line]
    assert len(lines) >= 2
    assert "1 object under d/{projectId}/{externalId}/, newest" in lines[0]
    assert "is older than the request at" in lines[0]
    assert "until the timeout" in lines[0]
    assert not any("secret" in line for line in lines)


@pytest.mark.parametrize("error", ["Trigger timeout", "Trigger/execution timeout"])
class TestAirflowEndsTheDeferral:
    def test_it_is_a_timeout(self, bucket, error):
        with pytest.raises(AirflowSensorTimeout):
            sensor(bucket, "deferred").resume_execution("__fail__", {"error": error}, {})

    def test_soft_fail_skips_it(self, bucket, error):
        with pytest.raises(AirflowSkipException):
            sensor(bucket, "deferred", soft_fail=True).resume_execution("__fail__", {"error": error}, {})


@pytest.mark.parametrize("event", [None, {"status": "broken", "message": "ZeroDivisionError"}, {"status": "running"}])
def test_an_event_that_says_nothing_is_left_to_airflows_retry(bucket, event):
    with pytest.raises(HealthExError, match="a retry waits on") as caught:
        sensor(bucket, "deferred", soft_fail=True).execute_complete({}, event=event, deadline=0)
    assert not isinstance(caught.value, HealthExConfigurationError)


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
        with pytest.raises(AirflowFailException, match=f"worker listing bucket 'bucket'.*{code}"):
            run_sensor(self.waiting(mode, soft_fail=True))
        assert len(s3.requests) == 1


def test_a_worker_that_cannot_see_what_the_triggerer_saw_keeps_to_the_deadline(bucket, monkeypatch):
    """A defer at each return would go on for ever, as with S3KeySensor."""
    bucket.put("d/project-1/patient-1/a.json")
    waiting = sensor(bucket, "deferred", timeout=1.5, poke_interval=0.3)

    def throttled(self, steps):
        return Waiting("S3 did not answer the worker (SlowDown), asking again")

    monkeypatch.setattr("airflow_provider_healthex.s3.Bucket.look", throttled)
    began = time.monotonic()
    with pytest.raises(AirflowSensorTimeout, match="SlowDown"):
        run_sensor(waiting)
    assert time.monotonic() - began < 5


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


def test_outlets_are_told_counts_and_times_and_neither_keys_nor_ids(bucket):
    bucket.put("d/project-1/patient-1/a.json", b"12")
    asset = Asset("s3://research/refreshed")
    waiting = sensor(bucket, outlets=[asset])
    context = context_of(waiting)
    context["outlet_events"] = {asset: SimpleNamespace(extra={})}

    result = run_sensor(waiting, context=context).result

    assert context["outlet_events"][asset].extra == {
        "object_count": 1,
        "total_bytes": 2,
        "since": result["since"],
        "first_modified": result["first_modified"],
        "last_modified": result["last_modified"],
    }


def test_a_trigger_that_broke_is_no_skip(bucket):
    from airflow.exceptions import TaskDeferralError

    with pytest.raises(TaskDeferralError):
        sensor(bucket, "deferred", soft_fail=True).resume_execution("__fail__", {"error": "Trigger failure"}, {})
