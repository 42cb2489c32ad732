"""Waiting for a cohort: one task in each mode, against a real S3 server."""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta

import pytest
from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)
from helpers.support import MODES, Bucket, context_of, run_sensor, run_trigger, utc_now

from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.sensors import results as module
from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor

PATH = "d/{projectId}/{healthexPatientId}/"


def cohort(*patients: str, **changes):
    """Write a cohort operator's output; a patient may be ``id=external id``."""
    moment = utc_now().replace(microsecond=0)
    entries = []
    for patient in patients:
        patient_id, _, external_id = patient.partition("=")
        entry = {"patient_id": patient_id, "requested_at": moment.isoformat()}
        entries.append({**entry, "external_id": external_id} if external_id else entry)
    return {
        "project_id": "project-1",
        "organization_id": "org-1",
        "requested_at": moment.isoformat(),
        "in_progress": entries,
        "patient_action_needed": [],
        "failed": [],
        **changes,
    }


def sensor(bucket: Bucket, mode: str = "poke", **changes) -> HealthExCohortArrivalSensor:
    return HealthExCohortArrivalSensor(
        **{
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
    )


@pytest.mark.parametrize("mode", MODES)
class TestEveryMode:
    def test_it_waits_for_all_and_says_who_arrived(self, bucket, mode, after_first_poke):
        update = cohort("p-1", "p-2", "p-3")
        first = bucket.put("d/project-1/p-1/a.json")
        bucket.put("d/project-1/p-3/a.json")
        bucket.put("d/project-1/p-3/b.json")
        bucket.put("d/project-1/p-3/folder/", b"")
        bucket.put("d/project-1/p-33/a.json")
        after_first_poke(lambda: bucket.put("d/project-1/p-2/a.json"))

        run = run_sensor(sensor(bucket, mode, update=update))

        assert run.result["missing"] == []
        assert [(one["patient_id"], one["object_count"]) for one in run.result["arrived"]] == [
            ("p-1", 1),
            ("p-2", 1),
            ("p-3", 2),
        ]
        assert run.result["arrived"][0] == {
            "patient_id": "p-1",
            "prefix": "d/project-1/p-1/",
            "object_count": 1,
            "last_modified": first.isoformat(),
        }
        assert run.result.keys() == {"bucket", "arrived", "missing", "arrived_count", "missing_count", "manifest"}
        assert (run.result["bucket"], run.result["arrived_count"], run.result["missing_count"]) == (bucket.name, 3, 0)
        assert run.deferrals == (1 if mode == "deferred" else 0)
        assert bool(run.reschedules) is (mode == "reschedule")
        json.dumps(run.result)

    def test_each_patient_is_judged_by_their_own_request(self, bucket, mode, later):
        update = cohort("p-1", "p-2")
        stamp = bucket.put("d/project-1/p-1/a.json")
        bucket.put("d/project-1/p-2/a.json")
        update["in_progress"][1]["requested_at"] = (stamp + timedelta(seconds=3)).isoformat()
        later(4, lambda: bucket.put("d/project-1/p-2/b.json"))

        result = run_sensor(sensor(bucket, mode, update=update, clock_skew=0)).result

        assert [one["object_count"] for one in result["arrived"]] == [1, 1]

    def test_a_patient_who_settled_stays_settled(self, bucket, mode, later):
        """Another object restarts nobody's wait who has arrived, so that a busy patient doesn't hold up a cohort."""
        bucket.put("d/project-1/p-1/a.json")
        later(2.5, lambda: bucket.put("d/project-1/p-1/b.json"))
        later(2.5, lambda: bucket.put("d/project-1/p-2/a.json"))

        result = run_sensor(sensor(bucket, mode, update=cohort("p-1", "p-2"), quiet_period=1.5)).result

        assert result["arrived_count"] == 2

    def test_at_the_deadline_enough_is_enough(self, bucket, mode):
        bucket.put("d/project-1/p-1/a.json")
        bucket.put("d/project-1/p-3/a.json")
        waiting = sensor(bucket, mode, update=cohort("p-1", "p-2", "p-3"), min_fraction=0.6, timeout=1.5)
        started = time.monotonic()

        result = run_sensor(waiting).result

        assert 1.4 <= time.monotonic() - started < 10
        assert [one["patient_id"] for one in result["arrived"]] == ["p-1", "p-3"]
        assert result["missing"] == ["p-2"]

    def test_at_the_deadline_enough_is_enough_with_soft_fail_too(self, bucket, mode):
        bucket.put("d/project-1/p-1/a.json")
        waiting = sensor(bucket, mode, update=cohort("p-1", "p-2"), min_fraction=0.5, timeout=1, soft_fail=True)
        assert run_sensor(waiting).result["missing"] == ["p-2"]

    def test_enough_is_enough_before_the_deadline_where_enough_after_says_so(self, bucket, mode, task_log):
        bucket.put("d/project-1/p-1/a.json")
        waiting = sensor(bucket, mode, update=cohort("p-1", "p-2"), min_fraction=0.5, enough_after=1.5, timeout=60)
        started = time.monotonic()

        result = run_sensor(waiting).result

        assert 1.4 <= time.monotonic() - started < 20
        assert result["missing"] == ["p-2"]
        assert "1 of 2 patients arrived; 1 missing, and min_fraction=0.5 is enough" in task_log()

    def test_before_enough_after_it_waits_for_all(self, bucket, mode, later):
        bucket.put("d/project-1/p-1/a.json")
        later(1, lambda: bucket.put("d/project-1/p-2/a.json"))
        waiting = sensor(
            bucket, mode, update=cohort("p-1", "p-2"), min_fraction=0.5, enough_after=timedelta(seconds=15)
        )
        assert run_sensor(waiting).result["missing"] == []

    def test_after_enough_after_too_few_are_waited_for(self, bucket, mode, task_log):
        bucket.put("d/project-1/p-1/a.json")
        update = cohort("p-1", "p-2", "p-3")
        waiting = sensor(bucket, mode, update=update, min_fraction=0.6, enough_after=0.5, timeout=3)
        with pytest.raises(AirflowSensorTimeout, match="Only 1 of 3"):
            run_sensor(waiting)
        assert "min_fraction is enough now" in task_log()

    def test_the_execution_timeout_ends_the_wait_and_fractions_do_not_matter(self, bucket, mode):
        bucket.put("d/project-1/p-1/a.json")
        waiting = sensor(
            bucket, mode, update=cohort("p-1", "p-2"), min_fraction=0.5, execution_timeout=timedelta(seconds=1)
        )
        with pytest.raises(AirflowTaskTimeout, match=r"execution_timeout of 1 s exceeded .* 1 of 2 arrived"):
            run_sensor(waiting)

    def test_too_few_at_the_deadline_are_a_timeout_that_says_how_many_are_missing(self, bucket, mode, task_log):
        bucket.put("d/project-1/p-1/a.json")
        waiting = sensor(bucket, mode, update=cohort("p-1", "p-2", "p-3"), min_fraction=0.6, timeout=1)
        with pytest.raises(
            AirflowSensorTimeout,
            match=r"^Only 1 of 3 patients arrived within 1 s, and min_fraction=0.6 needs 2, under 's3://bucket-",
        ):
            run_sensor(waiting)
        assert "2 of 3 patients are missing, and min_fraction is 0.6: p-2, p-3" in task_log()

    def test_soft_fail_skips_a_timeout(self, bucket, mode):
        with pytest.raises(AirflowSkipException):
            run_sensor(sensor(bucket, mode, update=cohort("p-1"), timeout=0.5, soft_fail=True))

    def test_soft_fail_does_not_hide_a_missing_bucket(self, bucket, mode):
        with pytest.raises(AirflowFailException, match=r"NoSuchBucket to the worker .*bucket 'no-such-bucket'"):
            run_sensor(sensor(bucket, mode, update=cohort("p-1"), bucket_name="no-such-bucket", soft_fail=True))

    def test_the_manifest_has_every_object_of_those_who_arrived(self, bucket, mode):
        for name in ("p-1/a.json", "p-1/b.json", "p-3/a.json"):
            bucket.put(f"d/project-1/{name}", b"12")
        bucket.put("d/project-1/p-4/a.json")  # nobody's of this cohort
        waiting = sensor(
            bucket,
            mode,
            update=cohort("p-1", "p-2", "p-3"),
            min_fraction=0.5,
            timeout=1,
            manifest_key="manifests/{projectId}.jsonl",
        )

        result = run_sensor(waiting).result

        assert result["manifest"] == f"s3://{bucket.name}/manifests/project-1.jsonl"
        body = bucket.client.get_object(Bucket=bucket.name, Key="manifests/project-1.jsonl")["Body"].read()
        lines = [json.loads(line) for line in body.splitlines()]
        assert [(line["patient_id"], line["uri"].rpartition("/")[2], line["size"]) for line in lines] == [
            ("p-1", "a.json", 2),
            ("p-1", "b.json", 2),
            ("p-3", "a.json", 2),
        ]

    def test_nobody_in_progress_is_nothing_to_wait_for(self, bucket, mode):
        needed = [{"patient_id": "p-9", "reason": "CONSENT_EXPIRED"}]
        waiting = sensor(bucket, mode, update=cohort(patient_action_needed=needed), manifest_key="m.jsonl")
        result = run_sensor(waiting).result
        assert (result["arrived"], result["missing"]) == ([], [])
        assert bucket.client.get_object(Bucket=bucket.name, Key="m.jsonl")["Body"].read() == b""

    def test_external_ids_come_from_the_update(self, bucket, mode):
        bucket.put("d/mrn-1.json")
        bucket.put("d/mrn-2.json.part")
        bucket.put("d/mrn-2.json")
        update = cohort("p-1=mrn-1", "p-2=mrn-2")
        result = run_sensor(sensor(bucket, mode, update=update, bucket_key="d/{externalId}.json")).result
        assert [(one["patient_id"], one["prefix"]) for one in result["arrived"]] == [
            ("p-1", "d/mrn-1.json"),
            ("p-2", "d/mrn-2.json"),
        ]

    def test_a_glob_before_the_patient(self, bucket, mode, later):
        bucket.put("d/2026-11-22/p-1/a.json")
        bucket.put("d/2026-11-21/p-1/a.xml")
        bucket.put("d/2026-11-22/p-3/a.json")
        later(1, lambda: bucket.put("d/2026-11-23/p-2/a.json"))
        waiting = sensor(
            bucket, mode, update=cohort("p-1", "p-2"), bucket_key="d/*/{healthexPatientId}/*.json", wildcard_match=True
        )
        assert [one["object_count"] for one in run_sensor(waiting).result["arrived"]] == [1, 1]

    @pytest.mark.parametrize("path", ["d/{healthexPatientId}/*.json", "d/*/{healthexPatientId}/*.json"])
    def test_a_marker_ends_a_patients_delivery_and_is_not_data(self, bucket, mode, path, later):
        for folder in (path.replace("{healthexPatientId}", one).replace("/*/", "/x/")[:-6] for one in ("p-1", "p-2")):
            bucket.put(f"{folder}a.json")
            later(1, lambda folder=folder: bucket.put(f"{folder}_SUCCESS", b""))
        waiting = sensor(
            bucket,
            mode,
            update=cohort("p-1", "p-2"),
            bucket_key=path,
            wildcard_match=True,
            marker="_SUCCESS",
            quiet_period=3600,
        )
        assert [one["object_count"] for one in run_sensor(waiting).result["arrived"]] == [1, 1]


def test_it_is_an_s3_key_sensor():
    assert issubclass(HealthExCohortArrivalSensor, S3KeySensor)


@pytest.mark.parametrize(
    "argument",
    [
        {"check_fn": bool},
        {"use_regex": True},
        {"on_patient_action": "wait"},
        {"since": "2026-11-22T17:40:05Z"},
        {"patient_id": "p"},
    ],
)
def test_another_way_is_refused_when_the_dag_is_parsed(bucket, argument):
    with pytest.raises(HealthExConfigurationError, match=f"{next(iter(argument))} is not supported"):
        sensor(bucket, update=cohort("p-1"), **argument)


@pytest.mark.parametrize("value", [1.1, -0.1, "all", True, float("nan")])
def test_a_fraction_is_a_fraction(bucket, value):
    with pytest.raises(HealthExConfigurationError, match="min_fraction"):
        sensor(bucket, update=cohort("p-1"), min_fraction=value)


#: Arguments that no template could make right, with the error's text.
MISTAKES = [
    ({"bucket_key": "d/{projectId}/"}, "doesn't name the patient"),
    ({"bucket_key": "d/{patientId}/"}, "not one of its variables"),
    ({"bucket_key": "d/{healthexPatientId}*", "wildcard_match": True}, "begins or ends alike"),
    ({"bucket_key": ["a/{healthexPatientId}/", "b/{healthexPatientId}/"]}, "2 paths"),
    ({"bucket_name": None}, "No bucket"),
    ({"manifest_key": "m/{healthexPatientId}.jsonl"}, "one manifest for the cohort"),
    ({"manifest_key": "s3://bucket/m.jsonl"}, "no URL"),
    ({"bucket_key": "d/{healthexPatientId}.json", "min_objects": 2}, "one object"),
    ({"bucket_key": "d/{healthexPatientId}.json", "marker": "_OK"}, "exact key"),
    ({"enough_after": -1}, r"enough_after must be at least 0 s, .* \(got -1\)"),
    ({"enough_after": 10}, "enough_after=10 needs a min_fraction below 1"),
    ({"enough_after": 20, "min_fraction": 0.5}, "enough_after must be less than the timeout of 20 s"),
    ({"min_fraction": 1.1}, r"min_fraction must be a number from 0 to 1, .* \(got 1.1\)"),
    ({"min_fraction": "all"}, "min_fraction must be"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), [*MISTAKES, ({"update": None}, "and is None"), ({"update": "refresh"}, "a string")]
)
def test_a_literal_argument_that_cannot_be_used_is_refused_when_the_dag_is_parsed(bucket, arguments, message):
    with pytest.raises(HealthExConfigurationError, match=message):
        sensor(bucket, **{"update": cohort("p-1"), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *MISTAKES,
        ({"update": {"patient_id": "p", "requested_at": "…"}}, "one patient's: wait for it with HealthExDataArrival"),
        ({"update": [cohort("p")]}, r"expand\(update=refresh.output\)"),
        ({"update": "{{ ti.xcom_pull('refresh') }}"}, "a string"),
        ({"update": None}, "update is None: the operator left no result"),
        ({"update": {"in_progress": 7}}, "in_progress is a int"),
        ({"update": cohort(in_progress=[{"patient_id": "p"}])}, "without patient_id or requested_at"),
        ({"update": cohort(in_progress=["p"])}, "without patient_id or requested_at"),
        ({"bucket_key": "d/{externalId}/"}, "2 of 3 patients have none"),
        ({"update": cohort("p-1", "p-1")}, "same path as another"),
        ({"manifest_key": "d/project-1/p-2/m.jsonl"}, "outside the path"),
        (
            {"bucket_key": "d/*/{healthexPatientId}-*", "wildcard_match": True, "marker": "_OK"},
            "belongs to several patients",
        ),
        ({"update": cohort(*map(str, range(10_001)))}, "10,001 patients"),
    ],
)
@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_rendered_argument_that_cannot_be_used_fails_for_good_and_says_how_to_write_it(
    bucket, arguments, message, soft_fail
):
    waiting = sensor(bucket, soft_fail=soft_fail, update=cohort("p-1", "p-2", "p-3=mrn-3"))
    for name, value in arguments.items():
        setattr(waiting, name, value)
    with pytest.raises(AirflowFailException, match=message) as caught:
        run_sensor(waiting)
    assert isinstance(caught.value.__cause__, HealthExConfigurationError)
    assert "mrn-3" not in str(caught.value)


def test_templates_hide_what_only_the_worker_can_know(bucket):
    sensor(
        bucket,
        update=cohort("p-1"),
        bucket_key="{{ params.path }}",
        manifest_key="{{ params.manifest }}",
        min_fraction="{{ params.fraction }}",
        enough_after="{{ params.seconds }}",
    )


def database_at(url: str, monkeypatch) -> None:
    get = module.conf.get
    told = ("database", "sql_alchemy_conn")
    monkeypatch.setattr(module.conf, "get", lambda *a, **kwargs: url if a == told else get(*a, **kwargs))


class TestSizes:
    many = cohort(*(f"p-{number}" for number in range(501)))

    @pytest.mark.parametrize("url", ["mysql+mysqldb://u:p@db/airflow", "mysql://db", "mariadb+pymysql://db"])
    def test_mysql_takes_500_deferred(self, bucket, url, monkeypatch):
        database_at(url, monkeypatch)
        with pytest.raises(AirflowFailException, match=r"501 patients.*500.*MySQL.*chunks"):
            run_sensor(sensor(bucket, "deferred", update=self.many))

    @pytest.mark.parametrize("url", ["airflow-db-not-allowed:///", ""])
    def test_where_the_database_is_not_known_it_warns(self, bucket, url, monkeypatch, task_log):
        database_at(url, monkeypatch)
        with pytest.raises(TaskDeferred):
            sensor(bucket, "deferred", update=self.many).execute(context_of(None))
        assert "501 patients are more than the 500" in task_log()

    def test_other_modes_have_no_row(self, bucket, monkeypatch):
        database_at("mysql://db", monkeypatch)
        assert not sensor(bucket, update=self.many).poke(context_of(None))

    def test_a_trigger_holds_an_id_and_seconds_of_each_patient(self, bucket):
        update = cohort("p-1=mrn-1", "p-2=mrn-2")
        update["in_progress"][1]["requested_at"] = (
            (utc_now() + timedelta(seconds=90)).replace(microsecond=0).isoformat()
        )
        with pytest.raises(TaskDeferred) as deferred:
            sensor(bucket, "deferred", update=update).execute(context_of(None))
        _, kwargs = deferred.value.trigger.serialize()
        patients = kwargs["expectation"]["patients"]
        assert patients[0] == ["p-1", 0]
        assert patients[1][0] == "p-2"
        assert 88 <= patients[1][1] <= 92
        assert "mrn" not in json.dumps(kwargs)

    def test_ten_thousand_are_deferred_in_half_a_megabyte(self, bucket):
        ids = [str(uuid.UUID(int=number)) for number in range(10_000)]
        with pytest.raises(TaskDeferred) as deferred:
            sensor(bucket, "deferred", update=cohort(*ids)).execute(context_of(None))
        assert len(json.dumps(deferred.value.trigger.serialize())) < 500_000


class TestDeferred:
    def test_a_restarted_trigger_keeps_its_baselines_and_deadline(self, bucket):
        update = cohort("p-1", "p-2")
        with pytest.raises(TaskDeferred) as deferred:
            sensor(bucket, "deferred", update=update, timeout=5).execute(context_of(None))
        started = time.time()
        event = run_trigger(deferred.value.trigger)
        again = run_trigger(deferred.value.trigger)
        assert event["status"] == again["status"] == "timed_out"
        assert time.time() - started < 9
        assert event["missing"] == "3"

    def test_a_bucket_deleted_while_deferred_fails_with_soft_fail_too(self, bucket):
        def delete() -> None:
            bucket.client.delete_bucket(Bucket=bucket.name)

        with pytest.raises(AirflowFailException, match="NoSuchBucket to the triggerer"):
            run_sensor(sensor(bucket, "deferred", update=cohort("p-1"), soft_fail=True), before_trigger=delete)

    def test_what_vanished_is_waited_for_again(self, bucket):
        update = cohort("p-1", "p-2")
        bucket.put("d/project-1/p-1/a.json")
        waiting = sensor(bucket, "deferred", update=update)
        with pytest.raises(TaskDeferred) as deferred:
            waiting.execute_complete(
                context_of(waiting), {"status": "arrived", "message": "", "missing": "0"}, time.time() + 9
            )
        assert deferred.value.trigger.schedule.deadline > time.time()

    def test_where_no_triggerer_reported_what_arrived_counts(self, bucket):
        bucket.put("d/project-1/p-1/a.json")
        waiting = sensor(bucket, "deferred", update=cohort("p-1", "p-2"), min_fraction=0.5)
        error = {"error": "Trigger timeout"}
        assert waiting.resume_execution("__fail__", error, context_of(waiting))["arrived_count"] == 1
        waiting.min_fraction = 1.0
        with pytest.raises(AirflowSensorTimeout, match="No triggerer reported"):
            waiting.resume_execution("__fail__", error, context_of(waiting))
