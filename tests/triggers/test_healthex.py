"""The S3 triggers: their arguments, their pokes and their events."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from helpers import s3_faults as s3
from helpers.support import aws_connection, run_trigger, utc_now

from airflow_provider_healthex.delivery import ArrivalRule, Expectation, Patient
from airflow_provider_healthex.delivery.schedule import PokeSchedule, WaitingLog, waiting_line
from airflow_provider_healthex.triggers.healthex import HealthExDataArrivalTrigger


def expected(*patient_ids: str) -> Expectation:
    patients = tuple(Patient(patient_id, utc_now() - timedelta(minutes=1)) for patient_id in patient_ids)
    return Expectation(("d/{healthexPatientId}/",), {}, patients, ArrivalRule(quiet_period=0))


def trigger(bucket_name, **changes):
    arguments = {
        "bucket_name": bucket_name,
        "expectation": expected("patient-1").to_dict(),
        "waiting_for": "patient patient-1",
        "deadline": time.time() + 20,
        "poke_interval": 0.2,
        "aws": {"aws_conn_id": "aws_default"},
        **changes,
    }
    return HealthExDataArrivalTrigger(**arguments)


def test_another_triggerer_goes_on_with_the_same_arguments():
    one = trigger("bucket")
    path, kwargs = one.serialize()
    assert path == "airflow_provider_healthex.triggers.healthex.HealthExDataArrivalTrigger"
    again = HealthExDataArrivalTrigger(**json.loads(json.dumps(kwargs)))
    assert again.serialize() == one.serialize()


def test_a_delivery_is_told_in_few_words(bucket):
    bucket.put("d/patient-1/a.json")
    assert run_trigger(trigger(bucket.name)) == {"status": "arrived", "message": "", "missing": "0", "listing": {}}


def test_a_restarted_triggerer_keeps_the_deadline(bucket):
    late = trigger(bucket.name, deadline=time.time() - 60, poke_interval=3600)
    event = run_trigger(late)
    assert (event["status"], event["missing"]) == ("timed_out", "1")
    assert event["message"] == "no objects under d/{healthexPatientId}/"


def test_there_is_a_last_look_at_the_deadline(bucket):
    bucket.put("d/patient-1/a.json")
    assert run_trigger(trigger(bucket.name, deadline=time.time() - 60))["status"] == "arrived"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bucket_name": "no-such-bucket"}, "NoSuchBucket to the triggerer (ListObjectsV2, bucket 'no-such-bucket'"),
        ({"aws": {"aws_conn_id": "nowhere"}}, "'nowhere': create the connection"),
    ],
)
def test_what_is_refused_for_good_is_an_event_and_no_exception(bucket, changes, message):
    event = run_trigger(trigger(**{"bucket_name": bucket.name, **changes}))
    assert event["status"] == "refused"
    assert message in event["message"]


STUCK = [s3.HALF_A_CHUNK, s3.WRONG_CHUNKS, s3.DRIPPING, s3.SILENCE]


@pytest.fixture
def stuck_server(request, monkeypatch):
    monkeypatch.setattr("airflow_provider_healthex.storage.s3.REQUEST_LIMIT", 0.7)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3.FaultyS3() as server:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(server.endpoint_url))
        server.script(request.param)
        yield server


def cohort_trigger(**changes):
    return trigger("bucket", expectation=expected("patient-1", "patient-2").to_dict(), **changes)


@pytest.mark.parametrize("stuck_server", STUCK, indirect=True, ids=str)
class TestAnAnswerThatDoesNotEnd:
    def test_is_given_up_and_the_next_poke_succeeds(self, stuck_server):
        stuck_server.script(s3.listing("d/patient-1/a.json"))
        assert run_trigger(trigger("bucket", deadline=time.time() + 60))["status"] == "arrived"

    def test_is_given_up_for_a_cohort(self, stuck_server):
        stuck_server.script(s3.listing("d/patient-1/a.json", "d/patient-2/a.json"))
        event = run_trigger(cohort_trigger(deadline=time.time() + 60))
        assert (event["status"], event["missing"]) == ("arrived", "0")

    def test_does_not_hold_the_deadline(self, stuck_server):
        stuck_server.script(STUCK * 9)
        started = time.time()
        event = run_trigger(trigger("bucket", deadline=started + 1))
        assert event["status"] == "timed_out"
        assert event["message"].startswith("S3 did not answer the triggerer")
        assert time.time() - started < 30


def test_a_defect_is_an_event_that_a_retry_may_pass(bucket, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("airflow_provider_healthex.delivery.arrival.ArrivalWait.poke", broken)
    assert run_trigger(trigger(bucket.name)) == {"status": "broken", "message": "ZeroDivisionError"}


def test_it_ends_at_once_when_the_triggerer_does(bucket):
    async def cancel_while_waiting():
        run = trigger(bucket.name, poke_interval=3600, deadline=time.time() + 3600).run()
        waiting = asyncio.ensure_future(anext(run))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancel_while_waiting())


@pytest.mark.parametrize(
    ("left", "clock"),
    [(0, "0:00:00"), (-5, "0:00:00"), (3_599.6, "1:00:00"), (21_600, "6:00:00")],
)
def test_the_log_says_how_long_still(left, clock):
    schedule = PokeSchedule(started=0, deadline=1_000 + left, poke_interval=60)
    assert waiting_line("x", "why", schedule, 1_000) == f"Waiting: why; x, {clock} until the timeout"


def test_the_log_says_when_a_part_of_a_cohort_is_enough():
    schedule = PokeSchedule(started=0, deadline=600, poke_interval=60, enough_at=300)
    before, after = (waiting_line("x", "why", schedule, now, "execution_timeout") for now in (299, 300))
    assert before == "Waiting: why; x, 0:00:01 until min_fraction is enough, 0:05:01 until the execution_timeout"
    assert after == "Waiting: why; x, min_fraction is enough now, 0:05:00 until the execution_timeout"


class TestWaitingLog:
    @pytest.fixture
    def lines(self):
        return []

    @pytest.fixture
    def log(self, lines):
        schedule = PokeSchedule(started=0, deadline=time.time() + 3600, poke_interval=60)
        return WaitingLog(SimpleNamespace(info=lines.append), "x", schedule, "timeout")

    def test_what_changes_is_logged_and_a_countdown_is_no_change(self, log, lines):
        for reason in (
            "no objects",
            "no objects",
            "1 fresh object, 9 s of 10 s left",
            "1 fresh object, 1 s of 10 s left",
        ):
            log.note(reason)
        log.note("2 fresh objects, 9 s of 10 s left")
        assert [line[9:24] for line in lines] == ["no objects; x, ", "1 fresh object,", "2 fresh objects"]

    def test_else_there_is_a_line_every_ten_minutes(self, log, lines, monkeypatch):
        now = time.time()
        for minutes in range(31):
            monkeypatch.setattr("airflow_provider_healthex.delivery.schedule.time.time", lambda m=minutes: now + m * 60)
            log.note("no objects")
        assert len(lines) == 4


def test_a_triggerer_that_has_an_older_sensors_arguments_goes_on(bucket):
    """They were stored before an update of this package."""
    _, kwargs = trigger(bucket.name).serialize()
    for name in ("started", "exponential_backoff", "max_wait", "limit"):
        kwargs.pop(name)
    bucket.put("d/patient-1/a.json")
    assert run_trigger(HealthExDataArrivalTrigger(**kwargs))["status"] == "arrived"
