"""The one step that is billed: never without a yes, watched to its end, and not lost with Ctrl-C."""

from __future__ import annotations

import json
import threading
import xml.etree.ElementTree as ET

import pytest
from helpers import s3_faults
from helpers.support import aws_connection

from airflow_provider_healthex.check import refresh as module
from airflow_provider_healthex.check.behaviour import NEW_NAMES, OVERWRITTEN
from airflow_provider_healthex.check.report import Status
from airflow_provider_healthex.check.timeline import Mark, Timeline, svg
from airflow_provider_healthex.sandbox import patients

from .conftest import EXTERNAL_IDS, PATIENT

QUIET = 2.0


def refresh(check, patient=PATIENT, confirm=None, show=print, **how):
    return check.refresh(patient, confirm=confirm or yes, show=show, **{"quiet_period": QUIET, "timeout": 30, **how})


def yes(text):
    return True


def no(text):
    return False


def lines(check, status=None):
    return [line.verdict for line in check.report.lines if line.step == 8 and status in (None, line.status)]


@pytest.mark.parametrize(
    ("layout", "naming"), [("several", OVERWRITTEN), ("retrieval", NEW_NAMES), ("in-name", NEW_NAMES)]
)
def test_one_refresh_shows_what_no_listing_can(laid_out, checked, layout, naming):
    sandbox = laid_out(layout)
    check, told = checked(sandbox), []
    watch = refresh(check, show=told.append)
    assert sandbox.asked(PATIENT) == 1
    assert watch.arrived_at is not None
    assert (watch.naming, check.report.behaviour.naming) == (naming, naming)
    assert len(watch.fresh) == len({"several": range(5), "retrieval": range(2), "in-name": range(1)}[layout])
    assert any(
        "S3KeySensor would have passed at once, on an object that is 30 days old" in each for each in lines(check)
    )
    assert any("This package's sensor passes" in each for each in lines(check))
    assert [each for each in told if "bundle" in each]


def test_a_marker_ends_the_watch(laid_out, checked):
    sandbox = laid_out("marker", delay=4)
    check = checked(sandbox)
    watch = refresh(check, quiet_period=600)
    assert watch.arrived_at is not None
    assert any("the marker" in each for each in lines(check))


def test_into_an_empty_bucket_the_whole_of_it_is_watched(laid_out, checked):
    sandbox = laid_out(earlier_deliveries=False)
    check = checked(sandbox)
    watch = refresh(check)
    assert (len(watch.fresh), watch.stale, watch.arrived_at is None) == (1, [], False)
    assert any("no path is known" in each for each in lines(check, Status.WARNING))


def test_by_sftp_it_is_watched_as_well(laid_out, checked):
    sandbox = laid_out("overwritten", delivery="sftp")
    check = checked(sandbox)
    watch = refresh(check)
    assert (watch.arrived_at is not None, watch.naming) == (True, OVERWRITTEN)


def test_with_external_ids_all_patients_are_watched_and_that_is_said(laid_out, checked):
    sandbox = laid_out("external")
    check = checked(sandbox, external_ids=EXTERNAL_IDS)
    watch = refresh(check)
    assert watch.arrived_at is not None
    assert any("so all patients are watched" in each for each in lines(check, Status.WARNING))


# --- nothing is billed


def test_nothing_is_requested_without_a_yes(laid_out, checked):
    sandbox = laid_out()
    check = checked(sandbox)
    asked = []
    assert refresh(check, confirm=lambda text: asked.append(text) or False) is None
    assert sandbox.asked(PATIENT) == 0
    assert "HealthEx bills this" in asked[0]
    assert PATIENT not in asked[0]


@pytest.mark.parametrize("patient", [patients.UNKNOWN, "a/b", ""])
def test_nothing_is_requested_for_a_patient_who_is_not_listed(laid_out, checked, patient):
    sandbox = laid_out()
    check = checked(sandbox)
    assert refresh(check, patient) is None
    assert sum(sandbox.asked_by_patient().values()) == 0
    assert lines(check, Status.FAILURE)


def test_nothing_is_requested_while_something_has_failed(laid_out, checked):
    sandbox = laid_out()
    check = checked(sandbox, path="e/{healthexPatientId}/")
    assert refresh(check) is None
    assert sandbox.asked(PATIENT) == 0


def test_nothing_is_requested_where_the_store_does_not_answer_any_more(laid_out, checked, monkeypatch):
    sandbox = laid_out()
    check = checked(sandbox)
    with s3_faults.FaultyS3() as server:
        server.script([s3_faults.SLOW_DOWN] * 9)
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(server.endpoint_url))
        monkeypatch.setattr(check._store._storage, "_client", None)  # as after any trouble
        assert refresh(check) is None
    assert sandbox.asked(PATIENT) == 0
    assert lines(check, Status.FAILURE) == ["nothing was requested: S3 returned SlowDown to the worker"]


def test_where_nobody_can_type_yes_nothing_is_requested(laid_out, command):
    sandbox = laid_out()
    code, out, err = command("--bucket", sandbox.bucket, "--refresh", PATIENT)
    assert (code, sandbox.asked(PATIENT)) == (0, 0)
    assert "give --yes" in err
    assert "the answer was not yes" in out


@pytest.mark.parametrize(("typed", "requests"), [("yes\n", 1), ("y\n", 0), ("\n", 0), ("", 0)])
def test_on_a_terminal_only_yes_is_yes(laid_out, command, monkeypatch, typed, requests):
    sandbox = laid_out()

    class Terminal:
        isatty = staticmethod(lambda: True)
        readline = staticmethod(lambda: typed)

    monkeypatch.setattr("sys.stdin", Terminal)
    command("--bucket", sandbox.bucket, "--refresh", PATIENT, "--quiet-period", "1")
    assert sandbox.asked(PATIENT) == requests


# --- what HealthEx may answer


def test_a_patient_who_needs_to_act_is_said_and_not_watched(laid_out, checked):
    sandbox = laid_out()
    check = checked(sandbox)
    assert refresh(check, patients.CONSENT_EXPIRED) is None
    assert any("patientActionNeededReason CONSENT_EXPIRED" in each for each in lines(check, Status.WARNING))


def test_an_ambiguous_answer_is_watched_from_then_on(laid_out, checked):
    sandbox = laid_out()
    sandbox.faults.add("update", "cut_after")
    check = checked(sandbox)
    watch = refresh(check)
    assert sandbox.asked(PATIENT) == 1, "it is not repeated"
    assert watch.arrived_at is not None
    assert any("nobody knows" in each for each in lines(check, Status.WARNING))


def test_unknown_fields_are_named_without_their_values(laid_out, checked):
    sandbox = laid_out()
    body = json.dumps({"message": "IN_PROGRESS_NO_ACTION_NEEDED", "facilities": [{"name": "Clinic"}], "{{ x }}": 1})
    sandbox.faults.add("update", "garbage", body=body)
    check = checked(sandbox)
    refresh(check)
    assert any("UNRECOGNIZED, facilities" in each for each in lines(check, Status.WARNING))
    assert "Clinic" not in check.report.text()


def test_where_nothing_comes_the_watch_ends_by_itself(laid_out, checked):
    check = checked(laid_out())
    watch = refresh(check, patients.NOTHING_CHANGED, timeout=1)
    assert watch.arrived_at is None
    assert any("nothing has changed for this patient" in each for each in lines(check, Status.WARNING))


# --- Ctrl-C


def test_ctrl_c_ends_the_watch_and_keeps_the_report_and_the_picture(laid_out, command, monkeypatch, tmp_path):
    sandbox = laid_out("several", delay=1)
    patience = threading.Event()

    def sleep(seconds):
        sandbox.wait_until_delivered()
        if patience.is_set():
            raise KeyboardInterrupt
        patience.set()

    monkeypatch.setattr(module.time, "sleep", sleep)  # no test can press a key at a known moment
    code, out, _ = command("--bucket", sandbox.bucket, "--refresh", PATIENT, "--yes", "--out", str(tmp_path))
    assert code == 130
    assert "the watch was ended by hand" in out
    assert "5 fresh objects" in out
    assert ET.parse(tmp_path / "timeline.svg").getroot().tag.endswith("svg")


def test_ctrl_c_during_the_request_says_that_it_may_be_billed(laid_out, checked, monkeypatch):
    check = checked(laid_out())

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(check._account.hook, "update_patient_data", interrupted)
    assert refresh(check) is None
    assert check.report.interrupted
    assert any("interrupted while the request was sent" in each for each in lines(check, Status.WARNING))


def test_no_id_is_shown_while_it_is_watched(laid_out, command, tmp_path):
    sandbox = laid_out("in-name")
    code, out, err = command(
        "--bucket", sandbox.bucket, "--refresh", PATIENT, "--yes", "--quiet-period", "2", "--out", str(tmp_path)
    )
    assert code == 0
    for text in (out, err, (tmp_path / "timeline.svg").read_text()):
        assert PATIENT not in text


def test_with_json_the_report_alone_is_on_stdout(laid_out, command):
    sandbox = laid_out()
    _, out, err = command("--bucket", sandbox.bucket, "--refresh", PATIENT, "--yes", "--quiet-period", "1", "--json")
    assert json.loads(out)["lines"][-1]["step"] == 8
    assert "HealthEx answered" in err


# --- the picture


def timeline(**changes):
    usual = {
        "title": "One <refresh>",
        "stale": [Mark("bundle-0.json", -2_592_000, 900)],
        "fresh": [Mark(f"bundle-{n}.json", 40 + 10 * n, 1000) for n in range(3)],
        "quiet_from": 60,
        "key_sensor_at": 0,
        "arrived_at": 360,
        "end": 360,
    }
    return Timeline(**{**usual, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fresh": [], "quiet_from": None, "arrived_at": None},
        {"stale": [], "key_sensor_at": 40},
        {"fresh": [Mark(f"file-{n}", n, 1) for n in range(60)]},
        {"end": 20_000, "arrived_at": None},
        {"end": 1, "arrived_at": 0, "quiet_from": 0},
    ],
)
def test_the_picture_is_well_formed_and_within_its_frame(changes):
    root = ET.fromstring(svg(timeline(**changes)))
    width, height = float(root.get("width")), float(root.get("height"))
    for element in root.iter():
        for name, limit in (("x", width), ("cx", width), ("x1", width), ("x2", width), ("y", height), ("cy", height)):
            assert 0 <= float(element.get(name, 0)) <= limit
    assert height < 700


def test_the_picture_shows_every_object_and_who_passes_when():
    text = svg(timeline())
    assert text.count("<circle") == 4
    assert "S3KeySensor passes (at once)" in text
    assert "HealthEx sensor: arrived (after 6 min)" in text
    assert "30 days before" in text
