"""The hint of the first poke where nothing matches the path, and of the timeout."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout, TaskDeferred
from helpers import s3_faults as s3
from helpers.places import arguments, update
from helpers.support import AIRFLOW, MODES, aws_connection, context_of, run_sensor, utc_now

from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor, HealthExDataArrivalSensor

HINT = "No key is exactly 'd/{healthexPatientId}', but 1 object lies below it: end the path with '/'"


def patient(mode: str, bucket: str, **changes) -> HealthExDataArrivalSensor:
    given = {"bucket_name": bucket, "bucket_key": "d/{healthexPatientId}", "timeout": 1.5, **changes}
    return HealthExDataArrivalSensor(**arguments(mode, **given))


def cohort(mode: str, bucket: str, **changes) -> HealthExCohortArrivalSensor:
    now = utc_now().replace(microsecond=0).isoformat()
    entries = [{"patient_id": one, "requested_at": now} for one in ("patient-1", "patient-2")]
    answer = {**update(), "in_progress": entries}
    given = {"bucket_name": bucket, "bucket_key": "d/{healthexPatientId}", "timeout": 1.5, "update": answer, **changes}
    return HealthExCohortArrivalSensor(**arguments(mode, **given))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sensor", [patient, cohort])
def test_a_typing_error_is_named_once_and_the_timeout_names_the_place(bucket, mode, sensor, task_log, airflow_database):
    bucket.put("d/patient-1/a.json")
    place = rf"within 1\.5 s.* under 's3://{bucket.name}/d/{{healthexPatientId}}'.*; last poke: "
    with pytest.raises(AirflowSensorTimeout, match=place):
        run_sensor(sensor(mode, bucket.name))
    # On 2.11 each line is printed and handed to logging.
    assert task_log().count(HINT) == (2 if AIRFLOW < (3,) else 1)


def test_a_path_that_stale_objects_match_needs_no_hint(monkeypatch):
    with s3.FaultyS3() as server:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(server.endpoint_url))
        server.script(s3.listing("d/patient-1/a.json", modified=utc_now().replace(year=2000, day=1)))
        waiting = patient("deferred", "bucket", bucket_key="d/{healthexPatientId}/")
        with pytest.raises(TaskDeferred):
            waiting.execute(context_of(waiting))
        assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [s3.ACCESS_DENIED, s3.NO_SUCH_BUCKET, s3.SLOW_DOWN, s3.GARBAGE], ids=str)
def test_a_hint_that_cannot_be_had_is_no_reason_to_fail(monkeypatch, answer):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3.FaultyS3() as server:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(server.endpoint_url))
        server.script(s3.EMPTY, answer)
        waiting = patient("poke", "bucket")
        assert not waiting.poke(context_of(waiting))
        assert len(server.requests) == 2
