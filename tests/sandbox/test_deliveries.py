from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timedelta, timezone

import pytest
from helpers.sandbox import DELAY, Caller, until

from airflow_provider_healthex.sandbox import Sandbox, patients
from airflow_provider_healthex.sandbox.deliveries import DeliveryPath, Scheduler
from airflow_provider_healthex.sandbox.loop import LoopThread
from airflow_provider_healthex.sandbox.patients import SCENARIOS
from airflow_provider_healthex.sandbox.state import Patient

MUST_ACT = [scenario.patient_id for scenario in SCENARIOS.values() if scenario.reason]
REFUSED = [scenario.patient_id for scenario in SCENARIOS.values() if scenario.error]


def is_old(moment: datetime) -> bool:
    return moment < datetime.now(timezone.utc) - timedelta(days=29)


def delivered(events) -> list[dict]:
    return [details for event, details in events if event == "delivered"]


def test_the_earlier_deliveries_are_there_and_a_month_old(objects):
    for scenario in SCENARIOS.values():
        found = objects(scenario.patient_id)
        assert sorted(found) == (sorted(scenario.file_names) if scenario.delivered_before else [])
        assert all(is_old(moment) for moment in found.values())


def test_an_accepted_update_overwrites_the_earlier_delivery_after_the_delay(sandbox, call, objects, second, events):
    call.update(patients.IN_PROGRESS)
    assert is_old(objects(patients.IN_PROGRESS)["bundle.json"])
    sandbox.wait_until_delivered()
    found = objects(patients.IN_PROGRESS)
    assert list(found) == ["bundle.json"]
    assert found["bundle.json"] >= second
    [details] = delivered(events)
    assert details["key"] == "d/project-demo/patient-in-progress/bundle.json"
    assert details["at"] - sandbox.requests(patients.IN_PROGRESS)[0].at >= timedelta(seconds=DELAY)


def test_a_refresh_holds_more_than_the_one_before(sandbox, call):
    before = read(sandbox, patients.IN_PROGRESS)
    call.update(patients.IN_PROGRESS)
    sandbox.wait_until_delivered()
    after = read(sandbox, patients.IN_PROGRESS)
    assert len(after["entry"]) > len(before["entry"])
    assert after["meta"]["versionId"] == "2"


@pytest.mark.parametrize("patient_id", [patients.FIRST_DELIVERY, patients.PARTIAL, patients.CONSENT_ENDS_SOON])
def test_one_file_is_delivered(sandbox, call, objects, second, patient_id):
    call.update(patient_id)
    sandbox.wait_until_delivered()
    found = objects(patient_id)
    assert list(found) == ["bundle.json"]
    assert found["bundle.json"] >= second


def test_several_files_come_one_after_the_other(sandbox, call, events):
    call.update(patients.SEVERAL_FILES)
    sandbox.wait_until_delivered()
    rows = delivered(events)
    assert [row["key"].rpartition("/")[2] for row in rows] == ["bundle-1.json", "bundle-2.json", "bundle-3.json"]
    assert rows[2]["at"] - rows[0]["at"] >= timedelta(seconds=0.9 * DELAY)


def test_nothing_changed_delivers_nothing(sandbox, call, objects, events):
    call.update(patients.NOTHING_CHANGED)
    sandbox.wait_until_delivered()
    assert is_old(objects(patients.NOTHING_CHANGED)["bundle.json"])
    assert delivered(events) == []


def test_a_late_tail_is_of_the_refresh_before_and_the_real_one_follows(sandbox, call, events):
    call.update(patients.LATE_TAIL)
    sandbox.wait_until_delivered()
    rows = [(row["key"].rpartition("/")[2], row["version"], row["stale"]) for row in delivered(events)]
    assert rows == [("bundle-2.json", 1, True), ("bundle-1.json", 2, False), ("bundle-2.json", 2, False)]


@pytest.mark.parametrize("patient_id", [*MUST_ACT, *REFUSED])
def test_without_a_retrieval_nothing_is_delivered(sandbox, call, patient_id, events):
    call.update(patient_id)
    sandbox.wait_until_delivered(timeout=0)
    assert delivered(events) == []


@pytest.mark.parametrize("patient_id", MUST_ACT)
def test_a_patient_who_acts_gets_data_without_a_request_and_updates_from_then_on(
    sandbox, call, objects, second, patient_id
):
    call.update(patient_id)
    sandbox.act(patient_id)
    sandbox.wait_until_delivered()
    assert objects(patient_id)["bundle.json"] >= second
    assert sandbox.asked(patient_id) == 1
    assert call.update(patient_id).json()["message"] == "IN_PROGRESS_NO_ACTION_NEEDED"


def test_delivering_without_a_request(sandbox, objects, second):
    assert sandbox.deliver(patients.SEVERAL_FILES) == [
        f"d/project-demo/patient-several-files/bundle-{number}.json" for number in (1, 2, 3)
    ]
    assert all(moment >= second for moment in objects(patients.SEVERAL_FILES).values())
    assert sandbox.asked(patients.SEVERAL_FILES) == 0


def test_delivering_for_an_unknown_patient_is_refused(sandbox):
    with pytest.raises(LookupError, match="healthex-sandbox patients"):
        sandbox.deliver("patient-nobody")


def test_a_reset_takes_back_what_is_on_its_way(sandbox, call, objects):
    call.update(patients.IN_PROGRESS)
    sandbox.s3_client().put_object(Bucket=sandbox.bucket, Key="d/other", Body=b"")
    sandbox.reset()
    sandbox.wait_until_delivered(timeout=0)
    assert is_old(objects(patients.IN_PROGRESS)["bundle.json"])
    assert sandbox.asked(patients.IN_PROGRESS) == 0
    keys = sandbox.s3_client().list_objects_v2(Bucket=sandbox.bucket)["Contents"]
    assert "d/other" not in [row["Key"] for row in keys]


def test_events_are_handed_to_the_listener_in_their_order(sandbox, call, events):
    call.update(patients.IN_PROGRESS)
    call.update(patients.CONSENT_EXPIRED)
    sandbox.wait_until_delivered()
    seen = [(event, details["patient_id"]) for event, details in events]
    assert seen == [
        ("requested", patients.IN_PROGRESS),
        ("answered", patients.IN_PROGRESS),
        ("requested", patients.CONSENT_EXPIRED),
        ("answered", patients.CONSENT_EXPIRED),
        ("delivered", patients.IN_PROGRESS),
    ]
    assert events[3][1]["reason"] == "CONSENT_EXPIRED"


@pytest.mark.parametrize(
    ("template", "prefix", "key"),
    [
        ("d/{projectId}/{healthexPatientId}/", "d/p/patient-x/", "d/p/patient-x/bundle.json"),
        ("{orgId}/{externalId}/in/", "o/ext-x/in/", "o/ext-x/in/bundle.json"),
        ("{healthexPatientId}.json", "patient-x.json", "patient-x.json"),
    ],
)
def test_the_path_is_a_template(template, prefix, key):
    path = DeliveryPath(template, "o", "p")
    patient = Patient("patient-x", SCENARIOS[patients.PARTIAL], "ext-x")
    assert path.prefix(patient) == prefix
    assert path.key(patient, "bundle.json") == key


def test_deliveries_follow_the_path():
    with Sandbox(path="in/{orgId}/{externalId}.json", delay=0) as sandbox:
        Caller(sandbox).update(patients.SEVERAL_FILES)
        sandbox.wait_until_delivered()
        rows = sandbox.s3_client().list_objects_v2(Bucket=sandbox.bucket, Prefix="in/org-demo/ext-several")
        assert [row["Key"] for row in rows["Contents"]] == ["in/org-demo/ext-several-files.json"]


@pytest.mark.parametrize(("template", "message"), [("d/{patient}/", "unknown variables"), ("", "is empty")])
def test_a_path_that_cannot_be_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        Sandbox(path=template)


@pytest.fixture
def scheduler():
    loop = LoopThread()
    yield Scheduler(loop)
    loop.stop()


def test_a_delivery_that_fails_does_not_stop_the_next(scheduler, caplog):
    done = threading.Event()
    scheduler.after(0, lambda: 1 / 0)
    scheduler.after(0, done.set)
    scheduler.wait_until_idle(5)
    assert done.is_set()
    assert "could not deliver" in caplog.text


def test_jobs_run_in_the_order_of_their_moments_one_after_the_other(scheduler):
    ran: list[str] = []

    def slow() -> None:
        time.sleep(0.2)
        ran.append("slow")

    scheduler.after(0.1, lambda: ran.append("later"))
    scheduler.after(0.0, slow)
    scheduler.after(0.0, lambda: ran.append("next"))
    scheduler.wait_until_idle(5)
    assert ran == ["slow", "next", "later"]


def test_clearing_finishes_the_running_job_and_drops_the_rest(scheduler):
    ran: list[str] = []
    began = threading.Event()

    def running() -> None:
        began.set()
        time.sleep(0.2)
        ran.append("running")

    scheduler.after(0, running)
    scheduler.after(0, lambda: ran.append("waiting"))
    scheduler.after(60, lambda: ran.append("later"))
    assert began.wait(5)
    scheduler.clear()
    assert ran == ["running"]
    scheduler.wait_until_idle(1)
    assert ran == ["running"]


def test_after_the_end_of_the_loop_a_job_is_dropped():
    loop = LoopThread()
    loop.stop()
    Scheduler(loop).after(0, lambda: 1 / 0)


def test_a_listener_may_call_the_sandbox():
    keys: list[str] = []

    def listener(event, details):
        if event == "delivered" and details["version"] < 4:
            keys.extend(sandbox.deliver(details["patient_id"]))

    with Sandbox(delivery="sftp", delay=0, earlier_deliveries=False, on_event=listener) as sandbox:
        Caller(sandbox).update(patients.FIRST_DELIVERY)
        sandbox.wait_until_delivered()
    assert len(keys) == 3


def test_waiting_for_deliveries_ends(sandbox, call):
    call.update(patients.IN_PROGRESS)
    with pytest.raises(TimeoutError, match="still pending"):
        sandbox.wait_until_delivered(timeout=0)


def test_a_listener_that_fails_changes_nothing():
    def listener(event, details):
        raise ZeroDivisionError

    with Sandbox(delay=0, on_event=listener, earlier_deliveries=False) as sandbox:
        Caller(sandbox).update(patients.FIRST_DELIVERY)
        sandbox.wait_until_delivered()
        until(lambda: read(sandbox, patients.FIRST_DELIVERY))


def read(sandbox: Sandbox, patient_id: str) -> dict:
    key = sandbox.prefix(patient_id) + "bundle.json"
    return json.loads(sandbox.s3_client().get_object(Bucket=sandbox.bucket, Key=key)["Body"].read())
