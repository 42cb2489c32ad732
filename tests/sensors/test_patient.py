"""What holds for one patient's arrival wherever it lands: one table of cases for S3 and for SFTP, in each mode."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    Asset,
)
from sensors.places import FOLDER, Place, update
from support import MODES, context_of, run_sensor, utc_now

from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError, HealthExPatientActionNeeded

DAY = 24 * 3600


@pytest.mark.parametrize("mode", MODES)
class TestEveryModeAndPlace:
    def test_a_stale_delivery_is_ignored_and_its_overwrite_arrives(self, place: Place, mode, later):
        place.put(FOLDER + "bundle.json", b"old", age=30 * DAY)
        later(3, lambda: place.put(FOLDER + "bundle.json", b"refreshed"))  # the first look may take seconds

        run = run_sensor(place.sensor(mode))

        assert run.result["keys"] == [FOLDER + "bundle.json"]
        assert run.result["total_bytes"] == len("refreshed")
        assert run.deferrals == (1 if mode == "deferred" else 0)
        assert bool(run.reschedules) is (mode == "reschedule")

    def test_a_delivery_before_the_first_look_has_arrived(self, place: Place, mode):
        asked = update(requested_at=(utc_now() - timedelta(seconds=900)).isoformat())
        place.put(FOLDER + "bundle.json", age=400)
        assert run_sensor(place.sensor(mode, update=asked, quiet_period=300)).result["object_count"] == 1

    def test_the_result_says_what_arrived(self, place: Place, mode):
        asked = update()
        stamp = place.put(FOLDER + "a.json", b"12")
        last = place.put(FOLDER + "deep/er/b.json", b"345")
        place.put("d/project-1/patient-10/c.json")

        result = run_sensor(place.sensor(mode, update=asked)).result

        assert result == {
            "bucket": getattr(place, "bucket", None),
            "prefix": FOLDER,
            "uri": place.uri(FOLDER),
            "patient_id": "patient-1",
            "project_id": "project-1",
            "since": asked["requested_at"],
            "keys": [FOLDER + "a.json", FOLDER + "deep/er/b.json"],
            "keys_truncated": False,
            "object_count": 2,
            "total_bytes": 5,
            "first_modified": stamp.isoformat(),
            "last_modified": last.isoformat(),
            "manifest": None,
        }

    def test_several_files_arrive_when_they_have_paused(self, place: Place, mode, later):
        place.put(FOLDER + "1.json")
        later(1, lambda: place.put(FOLDER + "2.json"))
        assert run_sensor(place.sensor(mode, quiet_period=4, clock_skew=0)).result["object_count"] == 2

    def test_at_least_so_many_files_must_come(self, place: Place, mode, later):
        place.put(FOLDER + "1.json")
        later(1, lambda: place.put(FOLDER + "2.json"))
        assert run_sensor(place.sensor(mode, min_objects=2)).result["object_count"] == 2

    def test_a_marker_ends_the_wait_and_is_not_data(self, place: Place, mode, later):
        place.put(FOLDER + "_SUCCESS", b"", age=DAY)
        place.put(FOLDER + "1.json")
        later(1.5, lambda: place.put(FOLDER + "_SUCCESS", b""))

        result = run_sensor(place.sensor(mode, marker="_SUCCESS", quiet_period=3600)).result

        assert result["keys"] == [FOLDER + "1.json"]
        assert result["last_modified"] < utc_now().isoformat()

    def test_a_list_needs_every_entry(self, place: Place, mode, later):
        place.put("d/a/patient-1/1.json")
        later(1, lambda: place.put("d/b/patient-1/1.json"))

        result = run_sensor(place.sensor(mode, path=["d/a/{healthexPatientId}/", "d/b/{healthexPatientId}/"])).result

        assert result["keys"] == ["d/a/patient-1/1.json", "d/b/patient-1/1.json"]
        assert result["prefix"] == "d/"

    def test_an_exact_path_is_not_its_longer_namesake(self, place: Place, mode, later):
        place.put("d/patient-1.json.old")
        later(1, lambda: place.put("d/patient-1.json"))
        assert run_sensor(place.sensor(mode, path="d/{healthexPatientId}.json")).result["keys"] == ["d/patient-1.json"]

    def test_a_glob(self, place: Place, mode):
        place.put("d/patient-1/a.xml")
        place.put("d/patient-1/1/b.json")
        waiting = place.sensor(mode, path="d/{healthexPatientId}/?/*.json", wildcard_match=True)
        assert run_sensor(waiting).result["keys"] == ["d/patient-1/1/b.json"]

    def test_the_manifest_lists_every_object(self, place: Place, mode):
        stamp = place.put(FOLDER + "a.json", b"12")

        result = run_sensor(place.sensor(mode, manifest="manifests/{healthexPatientId}.jsonl")).result

        assert result["manifest"] == place.uri("manifests/patient-1.jsonl")
        (line,) = [json.loads(line) for line in place.read("manifests/patient-1.jsonl").splitlines()]
        assert line["uri"] == place.uri(FOLDER + "a.json")
        assert line["size"] == 2
        assert line["last_modified"] == stamp.isoformat()
        assert line["patient_id"] == "patient-1"
        assert '"' not in line["etag"]

    def test_with_stale_files_it_times_out_at_its_deadline(self, place: Place, mode, airflow_database):
        place.put(FOLDER + "bundle.json", age=DAY)
        started = time.monotonic()
        with pytest.raises(AirflowSensorTimeout, match=r"Last seen: 1 object under .* is older than the request"):
            run_sensor(place.sensor(mode, timeout=1.5, poke_interval=6))
        assert 1.5 <= time.monotonic() - started < 1.5 + 6  # within one poke interval

    def test_where_nothing_is_soft_fail_skips_the_timeout(self, place: Place, mode, airflow_database):
        with pytest.raises(AirflowSkipException, match="no objects under d/"):
            run_sensor(place.sensor(mode, timeout=0.5, soft_fail=True))

    def test_soft_fail_does_not_hide_that_access_is_denied(self, place: Place, mode):
        place.deny()
        with pytest.raises(AirflowFailException, match=place.refused):
            run_sensor(place.sensor(mode, soft_fail=True))

    def test_soft_fail_does_not_hide_a_missing_place(self, place: Place, mode):
        with pytest.raises(AirflowFailException, match=place.nowhere):
            run_sensor(place.sensor(mode, soft_fail=True, **place.lose({})))

    def test_soft_fail_does_not_hide_a_missing_connection(self, place: Place, mode):
        conn_id = {"bucket_key": "aws_conn_id", "path": "sftp_conn_id"}[place.path_argument]
        with pytest.raises(AirflowFailException, match=r"'no_such_conn'.*create the connection"):
            run_sensor(place.sensor(mode, soft_fail=True, **{conn_id: "no_such_conn"}))

    def test_a_server_that_is_away_at_first_is_waited_for(self, place: Place, mode, later):
        place.take_away()

        def back() -> None:
            place.bring_back()
            place.put(FOLDER + "bundle.json")

        later(1.5, back)
        assert run_sensor(place.sensor(mode)).result["object_count"] == 1

    def test_a_server_that_is_away_for_a_while_changes_nothing(self, place: Place, mode, later):
        place.put(FOLDER + "bundle.json", b"old", age=DAY)

        def outage() -> None:
            place.take_away()
            time.sleep(1)
            place.bring_back()
            place.put(FOLDER + "bundle.json", b"refreshed")

        later(1, outage)
        assert run_sensor(place.sensor(mode)).result["total_bytes"] == len("refreshed")


@pytest.mark.parametrize("argument", [{"silent_fail": True}, {"never_fail": True}])
def test_another_way_to_fail_is_refused(place: Place, argument):
    with pytest.raises(HealthExConfigurationError, match=next(iter(argument))):
        place.sensor(**argument)


def test_neither_update_nor_since_is_refused_when_the_dag_is_parsed(place: Place):
    with pytest.raises(HealthExConfigurationError, match="existence proves nothing"):
        place.sensor(update=None)


@pytest.mark.parametrize("path", ["d/{{orgId}}/", "d/{{ projectId }}/", "d/${projectId}/", "d/<healthexPatientId>/"])
def test_healthexs_own_template_is_refused_when_the_dag_is_parsed(place: Place, path):
    with pytest.raises(HealthExConfigurationError, match="single braces"):
        place.sensor(path=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "d/{patient}/"}, r"none of its variables"),
        ({"path": "d/{externalId}/"}, r"external_id"),
        ({"path": "d/{healthexPatientId}*", "wildcard_match": True}, r"begins or ends alike"),
        ({"path": ""}, "give the key"),
        ({"since": "2026-11-22T17:40:05"}, "time zone"),
        ({"since": "yesterday"}, "ISO 8601"),
        ({"update": [update(), update()]}, r"expand\(update=refresh.output\)"),
        ({"update": "{{ ti.xcom_pull('refresh') }}"}, "a string"),
        ({"update": {"in_progress": []}}, "HealthExCohortArrivalSensor"),
        ({"update": {"something": "else"}}, "a dict"),
        ({"patient_id": "../other"}, r"'\.\.'|'/'"),
        ({"patient_id": "pat*"}, r"'\*'"),
        ({"path": "d/{healthexPatientId}.json", "marker": "_SUCCESS"}, "exact key"),
        ({"path": "d/{healthexPatientId}.json", "min_objects": 2}, "one object"),
        ({"manifest": "d/{projectId}/{healthexPatientId}/manifest"}, "outside the path"),
        ({"manifest": "manifests/"}, "a file's whole path"),
    ],
)
@pytest.mark.parametrize("soft_fail", [False, True])
def test_an_argument_that_cannot_be_used_fails_for_good_and_says_how_to_write_it(
    place: Place, arguments, message, soft_fail
):
    waiting = place.sensor(soft_fail=soft_fail, **{"path": "d/{projectId}/{healthexPatientId}/", **arguments})
    with pytest.raises(AirflowFailException, match=message) as caught:
        run_sensor(waiting)
    assert isinstance(caught.value.__cause__, HealthExConfigurationError)


def test_an_external_id_that_cannot_be_used_is_not_repeated_in_the_error(place: Place):
    with pytest.raises(AirflowFailException) as caught:
        run_sensor(place.sensor(path="d/{externalId}/", external_id="MRN/4711"))
    assert "4711" not in str(caught.value)


def test_a_path_without_the_patient_is_warned_of(place: Place, task_log):
    place.put("d/project-1/a.json")
    run_sensor(place.sensor(path="d/{projectId}/"))
    assert "does not name the patient" in task_log()


class TestPatientAction:
    needed = {"message": "PATIENT_ACTION_NEEDED", "patient_action_needed_reason": "CONSENT_EXPIRED"}

    def test_fail(self, place: Place):
        with pytest.raises(AirflowFailException, match="CONSENT_EXPIRED") as caught:
            run_sensor(place.sensor(update=update(**self.needed), soft_fail=True))
        assert isinstance(caught.value.__cause__, HealthExPatientActionNeeded)

    def test_skip(self, place: Place):
        with pytest.raises(AirflowSkipException):
            run_sensor(place.sensor(update=update(**self.needed), on_patient_action="skip"))

    @pytest.mark.parametrize("reason", ["CONSENT_EXPIRED", "A_REASON_OF_THE_FUTURE", None])
    def test_wait_keeps_the_baseline(self, place: Place, reason):
        place.put(FOLDER + "a.json")
        asked = update(**{**self.needed, "patient_action_needed_reason": reason})
        result = run_sensor(place.sensor(update=asked, on_patient_action="wait")).result
        assert result["since"] == asked["requested_at"]


def test_the_log_says_at_every_poke_why_it_waits_and_shows_no_key(place: Place, task_log):
    place.put("d/project-1/ext-secret/bundle-secret.json", age=DAY)
    waiting = place.sensor(path="d/{projectId}/{externalId}/", external_id="ext-secret")
    context = context_of(waiting)
    assert not waiting.poke(context)
    assert not waiting.poke(context)
    logged = [line for line in task_log().splitlines() if 'HTTP/1.1"' not in line]  # the test's server logs, too
    lines = [line for line in logged if "Waiting for" in line]
    assert len(lines) >= 2
    assert "1 object under d/{projectId}/{externalId}/, newest" in lines[0]
    assert "is older than the request at" in lines[0]
    assert "until the timeout" in lines[0]
    assert not [line for line in logged if "ext-secret" in line or "bundle-secret" in line]


@pytest.mark.parametrize("error", ["Trigger timeout", "Trigger/execution timeout"])
class TestAirflowEndsTheDeferral:
    def test_it_is_a_timeout(self, place: Place, error):
        with pytest.raises(AirflowSensorTimeout):
            place.sensor("deferred").resume_execution("__fail__", {"error": error}, {})

    def test_soft_fail_skips_it(self, place: Place, error):
        with pytest.raises(AirflowSkipException):
            place.sensor("deferred", soft_fail=True).resume_execution("__fail__", {"error": error}, {})


@pytest.mark.parametrize("event", [None, {"status": "broken", "message": "ZeroDivisionError"}, {"status": "running"}])
def test_an_event_that_says_nothing_is_left_to_airflows_retry(place: Place, event):
    with pytest.raises(HealthExError, match="a retry waits on") as caught:
        place.sensor("deferred", soft_fail=True).execute_complete({}, event=event, deadline=0)
    assert not isinstance(caught.value, HealthExConfigurationError)


class EventsOf:
    """The event of one asset. No dict: an asset of Airflow 3.0 has no hash."""

    def __init__(self, asset: Asset, event: SimpleNamespace) -> None:
        self._asset, self._event = asset, event

    def __getitem__(self, asset: Asset) -> SimpleNamespace:
        assert asset == self._asset
        return self._event


def test_outlets_are_told_counts_and_times_and_neither_keys_nor_ids(place: Place):
    place.put(FOLDER + "a.json", b"12")
    asset = Asset("s3://research/refreshed")
    waiting = place.sensor(outlets=[asset])
    context = context_of(waiting)
    event = SimpleNamespace(extra={})
    context["outlet_events"] = EventsOf(asset, event)

    result = run_sensor(waiting, context=context).result

    assert event.extra == {
        "object_count": 1,
        "total_bytes": 2,
        "since": result["since"],
        "first_modified": result["first_modified"],
        "last_modified": result["last_modified"],
    }


def test_a_trigger_that_broke_is_no_skip(place: Place):
    from airflow.exceptions import TaskDeferralError

    with pytest.raises(TaskDeferralError):
        place.sensor("deferred", soft_fail=True).resume_execution("__fail__", {"error": "Trigger failure"}, {})
