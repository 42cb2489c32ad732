"""One patient's arrival: one table of cases for S3 and for SFTP, in each mode."""

from __future__ import annotations

import inspect
import json
import re
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    Asset,
    BaseOperator,
    TaskDeferred,
)
from helpers.places import FOLDER, Place, update
from helpers.support import MODES, context_of, run_sensor, utc_now

from airflow_provider_healthex.exceptions import (
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExError,
    HealthExPatientActionNeeded,
)

DAY = 24 * 3600


@pytest.mark.parametrize("mode", MODES)
class TestEveryModeAndPlace:
    def test_a_stale_delivery_is_ignored_and_its_overwrite_arrives(self, place: Place, mode, after_first_poke):
        place.put(FOLDER + "bundle.json", b"old", age=30 * DAY)
        after_first_poke(lambda: place.put(FOLDER + "bundle.json", b"refreshed"))

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

    def test_several_files_arrive_when_they_have_paused(self, place: Place, mode, after_first_poke):
        place.put(FOLDER + "1.json")
        after_first_poke(lambda: place.put(FOLDER + "2.json"))
        assert run_sensor(place.sensor(mode, quiet_period=6, clock_skew=0)).result["object_count"] == 2

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
        with pytest.raises(AirflowSensorTimeout, match=r"last poke: 1 object under .* is older than the request"):
            run_sensor(place.sensor(mode, timeout=1.5, poke_interval=60))
        assert 1.5 <= time.monotonic() - started < 60  # a poke at the deadline, before another interval is over

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


@pytest.mark.parametrize("name", ["silent_fail", "never_fail"])
class TestAnotherWayToFail:
    def test_it_is_refused(self, place: Place, name):
        with pytest.raises(HealthExConfigurationError, match=f"{name} is not supported .* Use soft_fail"):
            place.sensor(**{name: True})

    def test_it_is_refused_where_default_args_give_it(self, place: Place, name):
        with DAG("d", schedule=None, default_args={name: True}), pytest.raises(HealthExConfigurationError, match=name):
            place.sensor()

    def test_it_is_refused_where_it_is_set_later(self, place: Place, name):
        waiting = place.sensor()
        setattr(waiting, name, True)
        with pytest.raises(AirflowFailException, match=name):
            run_sensor(waiting)


def test_neither_update_nor_since_is_refused_when_the_dag_is_parsed(place: Place):
    with pytest.raises(HealthExConfigurationError, match="existence proves nothing"):
        place.sensor(update=None)


@pytest.mark.parametrize("path", ["d/{{orgId}}/", "d/{{ projectId }}/", "d/${projectId}/", "d/<healthexPatientId>/"])
def test_healthexs_own_template_is_refused_when_the_dag_is_parsed(place: Place, path):
    with pytest.raises(HealthExConfigurationError, match="single braces"):
        place.sensor(path=path)


#: Arguments that no template could make right, with the error's text.
MISTAKES = [
    ({"path": "d/{patientId}/"}, r"not one of its variables"),
    ({"path": "d/{healthexPatientId/"}, r"not one of its variables"),
    ({"path": "d/{externalId}/"}, r"give external_id"),
    ({"path": "d/{healthexPatientId}*", "wildcard_match": True}, r"begins or ends alike"),
    ({"path": "d/{projectId}{healthexPatientId}/"}, r"touches another variable"),
    ({"path": ""}, "give the key"),
    ({"path": []}, "give the key"),
    ({"path": [None]}, "give the key"),
    ({"since": "2026-11-22T17:40:05"}, "time zone"),
    ({"since": "yesterday"}, "ISO 8601"),
    ({"patient_id": "../other"}, r"'\.\.'|'/'"),
    ({"patient_id": "pat*"}, r"'\*'"),
    ({"path": "d/{healthexPatientId}.json", "marker": "_SUCCESS"}, "exact key"),
    ({"path": "d/{healthexPatientId}.json", "min_objects": 2}, "one object"),
    ({"manifest": "d/{projectId}/{healthexPatientId}/manifest"}, "outside the path"),
    ({"manifest": "manifests/"}, "a file's whole path"),
    ({"min_objects": 0}, r"min_objects must be a whole number of at least 1 \(got 0\)"),
    ({"min_objects": "many"}, r"min_objects must be .* \(got 'many'\)"),
    ({"quiet_period": -1}, r"quiet_period must be at least 0 s, .* \(got -1\)"),
    ({"quiet_period": "five minutes"}, r"quiet_period must be .* \(got 'five minutes'\)"),
    ({"quiet_period": float("nan")}, r"quiet_period must be"),
    ({"clock_skew": timedelta(seconds=-1)}, r"clock_skew must be at least 0 s"),
    ({"marker": "*.done"}, r"marker must be a file's name, .* \(got '\*.done'\)"),
    ({"marker": "done/now"}, "marker must be"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_literal_argument_that_cannot_be_used_is_refused_when_the_dag_is_parsed(place: Place, arguments, message):
    with pytest.raises(HealthExConfigurationError, match=message):
        place.sensor(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *MISTAKES,
        ({"update": [update(), update()]}, r"expand\(update=refresh.output\)"),
        ({"update": "{{ ti.xcom_pull('refresh') }}"}, "a string"),
        ({"update": {"in_progress": []}}, "HealthExCohortArrivalSensor"),
        ({"update": {"something": "else"}}, "a dict"),
    ],
)
@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_rendered_argument_that_cannot_be_used_fails_for_good_and_says_how_to_write_it(
    place: Place, arguments, message, soft_fail
):
    waiting = place.rendered_sensor(soft_fail=soft_fail, **arguments)
    with pytest.raises(AirflowFailException, match=message) as caught:
        run_sensor(waiting)
    assert isinstance(caught.value.__cause__, HealthExConfigurationError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deferrable": "false"}, r"deferrable must be True or False \(got 'false'\)"),
        ({"wildcard_match": "no"}, "wildcard_match must be True or False"),
        ({"on_patient_action": "sideways"}, r"on_patient_action must be one of 'fail', .* \(got 'sideways'\)"),
    ],
)
def test_an_argument_of_another_type_is_refused(place: Place, arguments, message):
    with pytest.raises(HealthExConfigurationError, match=message):
        place.sensor(**arguments)


class Refresh(BaseOperator):
    """An operator that a sensor can wait for."""

    def __init__(self, patient_id: str = "patient-1", **kwargs) -> None:
        super().__init__(**kwargs)
        self.patient_id = patient_id


class TestUpdate:
    """The commonest mistakes of a first DAG, found before any patient is requested."""

    @pytest.fixture
    def refresh(self):
        with DAG("d", schedule=None):
            yield Refresh(task_id="refresh")

    def test_the_operator_itself_is_refused(self, place: Place, refresh):
        with pytest.raises(HealthExConfigurationError, match=r"give update=refresh\.output"):
            place.sensor(update=refresh)

    def test_a_mapped_operator_itself_is_refused(self, place: Place):
        mapped = Refresh.partial(task_id="refresh").expand(patient_id=["a", "b"])
        with pytest.raises(HealthExConfigurationError, match=r"give update=refresh\.output"):
            place.sensor(update=mapped)

    def test_a_function_that_is_not_called_is_refused(self, place: Place):
        with pytest.raises(HealthExConfigurationError, match=r"is a function: call it"):
            place.sensor(update=update)

    def test_a_quoted_template_is_refused(self, place: Place):
        with DAG("d", schedule=None), pytest.raises(HealthExConfigurationError, match="a string"):
            place.sensor(update="{{ ti.xcom_pull('refresh') }}")

    def test_a_quoted_template_may_be_rendered_natively(self, place: Place):
        with DAG("d", schedule=None, render_template_as_native_obj=True):
            place.sensor(update="{{ ti.xcom_pull('refresh') }}")

    def test_any_other_text_is_refused(self, place: Place):
        with pytest.raises(HealthExConfigurationError, match="a string"):
            place.sensor(update="refresh")

    def test_the_output_is_accepted(self, place: Place, refresh):
        place.sensor(update=refresh.output, patient_id=refresh.output["patient_id"])

    @pytest.mark.parametrize("soft_fail", [False, True])
    def test_an_operator_that_left_no_result_is_named(self, place: Place, refresh, soft_fail):
        """It was skipped, or a person marked it success."""
        waiting = place.sensor(update=refresh.output, soft_fail=soft_fail)
        waiting.update = None  # as Airflow renders it then
        with pytest.raises(AirflowFailException, match=r"update is None: the operator left no result.*skipped.*since="):
            run_sensor(waiting)


@pytest.mark.parametrize("path", ["d/{healthexPatientId}/", "d/{projectId}/", "d/{orgId}/"])
def test_a_variable_that_nothing_gives_a_value_is_refused_when_the_dag_is_parsed(place: Place, path):
    with pytest.raises(HealthExConfigurationError, match="there is no value for it"):
        place.sensor(path=path, update=None, since="2026-11-22T17:40:05Z")


def test_what_a_template_hides_is_left_to_the_worker(place: Place):
    place.sensor(
        path="d/{{ params.folder }}/{patientId}/", manifest="{{ params.manifest }}", since="{{ params.since }}"
    )
    place.sensor(path="d/{externalId}/", external_id="{{ params.mrn }}", min_objects="{{ params.files }}")


def test_numbers_and_markers_may_be_templates(place: Place):
    place.put(FOLDER + "a.json")
    place.put(FOLDER + "b.json")
    late = {"min_objects": "2", "quiet_period": "0", "clock_skew": " 60.5 "}
    assert run_sensor(place.rendered_sensor(**late)).result["object_count"] == 2


def test_durations_may_be_timedeltas(place: Place):
    place.put(FOLDER + "a.json")
    waiting = place.sensor(
        quiet_period=timedelta(0),
        clock_skew=timedelta(minutes=1),
        poke_interval=timedelta(seconds=0.2),
        timeout=timedelta(seconds=20),
    )
    assert run_sensor(waiting).result["object_count"] == 1


def test_it_can_be_mapped(place: Place):
    """A task with a wrong mapped argument fails finally, and is not retried."""
    fixed = place.arguments()
    fixed.pop("update")
    with DAG("d", schedule=None):
        mapped = place.kind.partial(**fixed).expand(update=[update(), "refresh"])
    place.put(FOLDER + "a.json")
    assert run_sensor(mapped.unmap({"update": update()})).result["object_count"] == 1
    with pytest.raises(AirflowFailException, match="a string"):
        run_sensor(mapped.unmap({"update": "refresh"}))


class TestAMomentThatMoves:
    """In reschedule mode each poke is another process, which renders the templates anew."""

    @pytest.mark.parametrize(
        "since",
        [
            "{{ ti.start_date }}",
            "{{ task_instance.start_date.isoformat() }}",
            "{{ ti.queued_dttm }}",
            "{{ macros.datetime.now(dag.timezone) }}",
            "{{ (macros.datetime.utcnow() | string) ~ 'Z' }}",
        ],
    )
    def test_in_reschedule_mode_it_is_refused(self, place: Place, since):
        with pytest.raises(HealthExConfigurationError, match=r"mode='reschedule': the wait would never end"):
            place.sensor("reschedule", since=since)

    @pytest.mark.parametrize("since", ["{{ dag_run.start_date }}", "{{ dag_run.run_after }}", "{{ params.now }}"])
    def test_one_that_stays_is_accepted(self, place: Place, since):
        place.sensor("reschedule", since=since, update=update())

    @pytest.mark.parametrize("mode", ["poke", "deferred"])
    def test_else_the_first_poke_fixes_it(self, place: Place, mode, later):
        moving = "{{ macros.datetime.now(dag.timezone) }}"
        waiting = place.sensor(mode, since=moving, update=update(), clock_skew=0)

        class Rendering(type(waiting)):
            """Renders its template whenever a worker begins, as Airflow does."""

            def execute(self, context):
                self.since = utc_now()
                return super().execute(context)

            def resume_execution(self, *args, **kwargs):
                time.sleep(1.1)  # a worker takes its time to start
                self.since = utc_now()
                return super().resume_execution(*args, **kwargs)

        waiting.__class__ = Rendering
        later(2.1, lambda: place.put(FOLDER + "a.json"))
        run = run_sensor(waiting)
        assert run.result["object_count"] == 1
        assert run.deferrals == (1 if mode == "deferred" else 0)


def test_an_external_id_that_cannot_be_used_is_not_repeated_in_the_error(place: Place):
    with pytest.raises(HealthExConfigurationError) as at_once:
        place.sensor(path="d/{externalId}/", external_id="MRN/4711")
    with pytest.raises(AirflowFailException) as late:
        run_sensor(place.rendered_sensor(path="d/{externalId}/", external_id="MRN/4711"))
    assert "4711" not in str(at_once.value) + str(late.value)


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


def test_the_log_says_why_it_waits_and_shows_no_key(place: Place, task_log):
    place.put("d/project-1/ext-secret/bundle-secret.json", age=DAY)
    waiting = place.sensor(path="d/{projectId}/{externalId}/", external_id="ext-secret")
    assert not waiting.poke(context_of(waiting))
    logged = [line for line in task_log().splitlines() if 'HTTP/1.1"' not in line]  # the test's server logs, too
    line = next(line for line in logged if "Waiting:" in line)
    assert "Waiting: 1 object under d/{projectId}/{externalId}/, newest" in line
    assert "is older than the request at" in line
    assert re.search(r"; patient patient-1, 0:00:\d\d until the timeout", line)
    assert not [line for line in logged if "ext-secret" in line or "bundle-secret" in line]


@pytest.mark.parametrize("mode", ["poke", "deferred"])
def test_the_log_has_a_line_where_something_changes_and_none_for_each_poke(
    place: Place, mode, task_log, after_first_poke
):
    after_first_poke(lambda: place.put(FOLDER + "a.json"))
    run_sensor(place.sensor(mode, quiet_period=2, clock_skew=0))
    lines = [line for line in task_log().splitlines() if "Waiting:" in line]
    # The worker's first poke is in its log and its trigger's first in the triggerer's, which are one in the end.
    assert 2 <= len({line.partition("Waiting: ")[2] for line in lines}) <= 4
    assert "no objects under" in lines[0]
    assert "1 fresh object" in lines[-1]


@pytest.mark.parametrize("mode", MODES)
class TestTheTimeoutsMessage:
    def test_it_says_what_was_awaited_and_shortens_ids(self, place: Place, mode, airflow_database):
        waiting = place.sensor(
            mode,
            path="d/{projectId}/{externalId}/",
            external_id="ext-secret",
            patient_id="17d4513f-73e8-9",
            timeout=0.3,
        )
        with pytest.raises(AirflowSensorTimeout) as caught:
            run_sensor(waiting)
        message = str(caught.value)
        assert message.startswith("No delivery within 0.3 s under '")
        assert "d/{projectId}/{externalId}/' " in message
        assert "(patient 17d4513f…); last poke: no objects under d/{projectId}/{externalId}/" in message
        assert getattr(place, "bucket", "sftp_default") in message
        assert "ext-secret" not in message
        assert "73e8" not in message


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("soft_fail", [False, True])
class TestExecutionTimeout:
    """Alike in every mode: a failure that Airflow retries, and not the sensor's own timeout."""

    def test_it_ends_the_wait_and_is_no_skip(self, place: Place, mode, soft_fail, airflow_database):
        waiting = place.sensor(mode, timeout=60, execution_timeout=timedelta(seconds=1.5), soft_fail=soft_fail)
        began = time.monotonic()
        with pytest.raises(
            AirflowTaskTimeout, match=r"^execution_timeout of 1.5 s exceeded while waiting for .*no obj"
        ):
            run_sensor(waiting)
        assert time.monotonic() - began < 20

    def test_the_sensors_timeout_ends_it_where_that_is_earlier(self, place: Place, mode, soft_fail, airflow_database):
        waiting = place.sensor(mode, timeout=0.5, execution_timeout=timedelta(seconds=60), soft_fail=soft_fail)
        with pytest.raises(AirflowSkipException if soft_fail else AirflowSensorTimeout, match="No delivery within"):
            run_sensor(waiting)

    def test_airflows_own_alarm_is_named(self, place: Place, mode, soft_fail, monkeypatch, airflow_database):
        """It comes between two pokes, or in the middle of one."""
        waiting = place.sensor(mode, timeout=60, execution_timeout=timedelta(seconds=30), soft_fail=soft_fail)

        def alarm(*args: object) -> None:
            raise AirflowTaskTimeout("Timeout, PID: 1")

        monkeypatch.setattr(type(waiting), "_run", alarm)
        with pytest.raises(AirflowTaskTimeout, match=r"^execution_timeout of 30 s exceeded"):
            run_sensor(waiting)


@pytest.mark.parametrize("error", ["Trigger timeout", "Trigger/execution timeout"])
class TestAirflowEndsTheDeferral:
    def end(self, waiting, error):
        return waiting.resume_execution("__fail__", {"error": error}, context_of(waiting))

    def test_there_is_a_last_poke(self, place: Place, error):
        place.put(FOLDER + "a.json")
        assert self.end(place.sensor("deferred"), error)["object_count"] == 1

    def test_else_it_is_a_timeout_that_asks_for_the_triggerer(self, place: Place, error):
        with pytest.raises(AirflowSensorTimeout, match=r"no objects .* No triggerer reported .* is one running\?"):
            self.end(place.sensor("deferred"), error)

    def test_soft_fail_skips_it(self, place: Place, error):
        with pytest.raises(AirflowSkipException):
            self.end(place.sensor("deferred", soft_fail=True), error)

    def test_where_the_execution_timeout_is_earlier_that_is_named(self, place: Place, error):
        waiting = place.sensor("deferred", soft_fail=True, execution_timeout=timedelta(seconds=8))
        with pytest.raises(AirflowTaskTimeout, match="execution_timeout of 8 s exceeded") as caught:
            self.end(waiting, error)
        assert "triggerer" not in str(caught.value)

    def test_airflow_2_11_leaves_time_for_the_last_poke(self, place: Place, error):
        """There, Airflow itself fails a task that resumes after its limit, unless that has been extended before."""
        waiting = place.sensor("deferred", execution_timeout=timedelta(seconds=8), timeout=60)
        begun = utc_now() - timedelta(minutes=5)
        waiting.pre_execute({"ti": SimpleNamespace(next_method="__fail__", start_date=begun)})
        assert waiting.execution_timeout > timedelta(minutes=5, seconds=30)
        with pytest.raises(AirflowTaskTimeout, match="execution_timeout of 8 s exceeded"):
            self.end(waiting, error)

    def test_soft_fail_does_not_hide_a_missing_place(self, place: Place, error):
        waiting = place.sensor("deferred", soft_fail=True, **place.lose({}))
        with pytest.raises(AirflowFailException, match=place.nowhere):
            self.end(waiting, error)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_connection_that_cannot_be_read_right_now_is_waited_for(place: Place, mode, soft_fail, monkeypatch):
    """A stand-in for Airflow's own trouble: an API server or secrets backend that doesn't answer."""
    place.put(FOLDER + "a.json")
    troubles = [HealthExConnectionError("Airflow did not answer")] * 2
    for storage in place.storages():
        raise_first(monkeypatch, storage, troubles)
    assert run_sensor(place.sensor(mode, soft_fail=soft_fail)).result["object_count"] == 1
    assert not troubles


@pytest.mark.parametrize("mode", MODES)
def test_one_that_never_can_be_is_a_timeout(place: Place, mode, monkeypatch, airflow_database):
    troubles = [HealthExConnectionError("Airflow did not answer")] * 1000
    for storage in place.storages():
        raise_first(monkeypatch, storage, troubles)
    with pytest.raises(AirflowSensorTimeout, match="last poke: Airflow did not answer"):
        run_sensor(place.sensor(mode, timeout=0.5))


def raise_first(monkeypatch, storage: type, troubles: list[Exception]) -> None:
    """Let a storage's pokes raise these errors, and then go on."""
    look = storage.run

    def failing(self, steps):
        if troubles:
            raise troubles.pop()
        return look(self, steps)

    async def failing_async(self, steps):
        if troubles:
            raise troubles.pop()
        return await look(self, steps)

    monkeypatch.setattr(storage, "run", failing_async if inspect.iscoroutinefunction(look) else failing)


@pytest.mark.parametrize("mode", MODES)
class TestNoTimeAtAll:
    """A timeout of 0 is one poke."""

    def test_what_is_there_has_arrived(self, place: Place, mode):
        place.put(FOLDER + "a.json")
        assert run_sensor(place.sensor(mode, timeout=0, poke_interval=0)).result["object_count"] == 1

    def test_else_it_is_a_timeout(self, place: Place, mode, task_log, airflow_database):
        with pytest.raises(AirflowSensorTimeout, match="No delivery within 0 s"):
            run_sensor(place.sensor(mode, timeout=0, poke_interval=0))
        assert len({line for line in task_log().splitlines() if "Waiting: " in line}) <= 2


@pytest.mark.parametrize("mode", MODES)
def test_exponential_backoff_works_in_every_mode(place: Place, mode, later):
    later(1, lambda: place.put(FOLDER + "a.json"))
    waiting = place.sensor(mode, exponential_backoff=True, max_wait=0.4)
    assert run_sensor(waiting).result["object_count"] == 1


def test_a_trigger_computes_the_backoff_of_its_sensor(place: Place):
    waiting = place.sensor("deferred", poke_interval=60, exponential_backoff=True, max_wait=timedelta(minutes=9))
    began = time.time()
    with pytest.raises(TaskDeferred) as deferred:
        waiting.execute(context_of(waiting))
    _, kwargs = deferred.value.trigger.serialize()
    assert (kwargs["poke_interval"], kwargs["exponential_backoff"], kwargs["max_wait"]) == (60, True, 540)
    assert began <= kwargs["started"] <= time.time()
    assert kwargs["deadline"] == pytest.approx(kwargs["started"] + 20)


@pytest.mark.parametrize("event", [None, {"status": "broken", "message": "ZeroDivisionError"}, {"status": "running"}])
def test_an_event_that_says_nothing_is_left_to_airflows_retry(place: Place, event):
    with pytest.raises(HealthExError, match="A retry waits again") as caught:
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
