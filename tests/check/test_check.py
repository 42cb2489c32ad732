"""The whole check against the sandbox: what it infers, what it finds wrong, and that it bills and betrays nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import s3_faults, support

from airflow_provider_healthex.check.report import Shortener, Status
from airflow_provider_healthex.check.run import Check, Settings
from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.layouts import LAYOUTS
from airflow_provider_healthex.sandbox.patients import PROJECT_ID, SCENARIOS

from .conftest import EXTERNAL_IDS

FOLDER = "d/{projectId}/{healthexPatientId}/"
#: The path, whether it is a glob, objects a delivery, the naming, and the marker.
INFERRED = {
    "overwritten": (FOLDER, False, "1 to 3 objects", "open", None),
    "several": (FOLDER, False, "5 objects", "open", None),
    "dated": (FOLDER, False, "1 object", "new names", None),
    "by-day": ("d/{projectId}/*/{healthexPatientId}/", True, "1 object", "new names", None),
    "retrieval": (FOLDER, False, "2 objects", "new names", None),
    "marker": (FOLDER, False, "4 objects", "open", "_SUCCESS"),
    "in-name": ("d/{projectId}/{healthexPatientId}_*", True, "1 object", "new names", None),
    "external": ("d/{projectId}/{externalId}/", False, "1 object", "open", None),
}


def external(layout: str) -> dict:
    return {"external_ids": EXTERNAL_IDS} if layout == "external" else {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_inferred_of_each_layout(laid_out, checked, layout):
    # A marker's seconds must differ from the other files' for it to be seen as the last.
    report = checked(laid_out(layout, delay=8), **external(layout)).report
    path, wildcard, objects, naming, marker = INFERRED[layout]
    assert not report.has_failed(), report.text()
    assert (report.templates[0].path, report.templates[0].wildcard) == (path, wildcard)
    assert any(f"{objects} each" in line.verdict for line in report.lines)
    assert report.behaviour.naming == naming
    assert (report.behaviour.marker and report.behaviour.marker.name) == marker


def test_a_path_that_varies_before_the_patient_is_a_warning(laid_out, checked):
    report = checked(laid_out("by-day", delay=8)).report
    assert [line.verdict for line in report.lines if line.step == 5 and line.status is Status.WARNING] == [
        "It needs wildcard_match=True: something before the patient varies, so each poke lists all"
    ]


def test_by_sftp_the_same_is_inferred(laid_out, checked):
    report = checked(laid_out("retrieval", delivery="sftp", delay=8)).report
    assert not report.has_failed(), report.text()
    assert report.templates[0].path == FOLDER
    assert "HealthExSftpDataArrivalSensor" in report.advice
    assert 'path="d/{projectId}/{healthexPatientId}/"' in report.advice


def test_an_empty_bucket_is_a_warning_and_gives_no_advice(laid_out, checked):
    report = checked(laid_out(earlier_deliveries=False)).report
    assert (report.verdict, report.advice, report.templates) == (Status.WARNING, "", ())
    assert any("no objects yet" in line.verdict for line in report.lines)


def test_external_ids_that_are_not_given_are_asked_for(laid_out, checked):
    report = checked(laid_out("external")).report
    assert report.templates == ()
    assert any("--external-ids" in line.advice for line in report.lines)


def test_a_right_path_is_confirmed_and_advised(laid_out, checked):
    report = checked(laid_out(), path=FOLDER).report
    assert not report.has_failed()
    assert any(line.verdict.startswith(f"'{FOLDER}' matches ") for line in report.lines)
    assert f'bucket_key="{FOLDER}"' in report.advice


def test_without_a_store_the_account_alone_is_checked(laid_out):
    laid_out()
    report = Check(Settings()).run()
    assert not report.has_failed()
    assert any("give --bucket or --sftp-conn-id" in line.verdict for line in report.lines)
    assert "Assumptions" not in report.text()


# --- each failure of README's table that set-up can have


def _connection(sandbox: Sandbox, **changes) -> str:
    return json.dumps({**json.loads(sandbox.airflow_environment()["AIRFLOW_CONN_HEALTHEX_DEFAULT"]), **changes})


def healthex(**changes):
    def spoil(sandbox, monkeypatch, certificate):
        changed = {key: value(sandbox) if callable(value) else value for key, value in changes.items()}
        monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", _connection(sandbox, **changed))
        return {}

    return spoil


def fault(endpoint, kind, **how):
    def spoil(sandbox, monkeypatch, certificate):
        sandbox.faults.add(endpoint, kind, times=9, **how)
        return {}

    return spoil


def settings(**changes):
    return lambda sandbox, monkeypatch, certificate: changes


def no_connection(sandbox, monkeypatch, certificate):
    monkeypatch.delenv("AIRFLOW_CONN_HEALTHEX_DEFAULT")
    return {"healthex_conn_id": "healthex_nowhere"}


def closed_port(sandbox, monkeypatch, certificate):
    return healthex(host=s3_faults.closed_port_url())(sandbox, monkeypatch, certificate)


def answering(*answers, certificate_too=False):
    """A host that isn't HealthEx."""

    def spoil(sandbox, monkeypatch, certificate):
        server = s3_faults.FaultyS3(certificate if certificate_too else None)
        server.__enter__()
        server.script([*answers] * 9)
        token = {"login": "", "password": sandbox.token()}
        monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", _connection(sandbox, host=server.endpoint_url, **token))
        return {"_server": server}

    return spoil


def bucket(answer):
    def spoil(sandbox, monkeypatch, certificate):
        server = s3_faults.FaultyS3()
        server.__enter__()
        server.script([answer] * 9)
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", support.aws_connection(server.endpoint_url))
        return {"_server": server}

    return spoil


FAILURES = {
    "There is no Airflow connection": (no_connection, 1, "no Airflow connection 'healthex_nowhere'"),
    "has no password": (healthex(password=""), 1, "has no password"),
    "No project": (healthex(extra={}), 1, "No project"),
    "can't be an id": (settings(project="a/b"), 3, "project_id"),
    "the token would travel unencrypted": (healthex(host="http://healthex.example"), 1, "would be sent unencrypted"),
    "no base URL": (healthex(host="ftp://healthex.example"), 1, "the base URL must look like"),
    "the stored token expired": (
        healthex(login="", password=lambda sandbox: sandbox.token(expires_in=-3600)),
        2,
        "The stored token expired at",
    ),
    "POST /v1/auth/token answered 401": (healthex(password="wrong-secret"), 2, "HTTP 401"),
    "answered 401": (
        healthex(login="", password=lambda sandbox: sandbox.token()[:-8] + "AAAAAAAA"),
        3,
        "HTTP 401",
    ),
    "answered 403": (fault("consents", 403), 3, "HTTP 403"),
    "answered 404": (settings(project="project-nowhere"), 3, "HTTP 404"),
    "answered 400": (fault("consents", 400, body="Project is not active"), 3, "HTTP 400"),
    "answered 429": (fault("consents", 429, retry_after=3600), 3, "HTTP 429"),
    "answered 503": (fault("consents", 503, retry_after=3600), 3, "HTTP 503"),
    "was never reached": (closed_port, 1, "connection refused ("),
    "a certificate": (answering(s3_faults.EMPTY, certificate_too=True), 1, "Check the certificate"),
    "Redirects are never followed": (answering(s3_faults.Answer(status=302)), 1, "redirects are never followed"),
    "HealthEx's clock": (
        answering(s3_faults.Answer("{}", date="Mon, 02 Nov 2026 10:00:00 GMT")),
        1,
        "from this machine's",
    ),
    "contains '{{orgId}}'": (settings(path="d/{{orgId}}/{healthexPatientId}/"), 5, "{{orgId}}"),
    "contains '${projectId'": (settings(path="d/${projectId}/{healthexPatientId}/"), 5, "${projectId"),
    "contains '{date}'": (settings(path="d/{date}/{healthexPatientId}/"), 5, "{date}"),
    "needs {externalId}": (settings(path="d/{projectId}/{externalId}/"), 5, "needs {externalId}"),
    "does not name the patient": (settings(path="d/{projectId}/"), 5, "does not name the patient"),
    "No delivery, a slash is missing": (settings(path=FOLDER.rstrip("/")), 5, "ends without '/'"),
    "No delivery, the path is wrong": (settings(path="e/{healthexPatientId}/"), 5, "matches 0 of 12 patients"),
    "AccessDenied": (bucket(s3_faults.ACCESS_DENIED), 4, "AccessDenied"),
    "NoSuchBucket": (settings(bucket="no-such-bucket-here"), 4, "NoSuchBucket"),
    "InvalidAccessKeyId": (bucket(s3_faults.INVALID_ACCESS_KEY), 4, "InvalidAccessKeyId"),
    "SlowDown": (bucket(s3_faults.SLOW_DOWN), 4, "S3 returned SlowDown to the worker"),
    "its keys are not in order": (bucket(s3_faults.listing("b", "a")), 4, "its keys are not in order"),
    "must not have a ZERO WIDTH SPACE": (settings(project="project-demo\u200b"), 3, "ZERO WIDTH SPACE"),
    "AWS connection not found": (settings(aws_conn_id="aws_nowhere"), 4, "no Airflow connection 'aws_nowhere'"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_of_set_up_is_found_before_anything_is_billed(laid_out, monkeypatch, certificate, name):
    spoil, step, text = FAILURES[name]
    sandbox = laid_out()
    changes = spoil(sandbox, monkeypatch, certificate)
    server = changes.pop("_server", None)
    try:
        check = Check(Settings(**{"bucket": sandbox.bucket, **changes}))
        report = check.run()
    finally:
        if server:
            server.__exit__()
    found = [line for line in report.lines if text in line.verdict]
    assert [line.step for line in found] == [step], report.text()
    clock = "clock" in name
    assert found[0].status is (Status.WARNING if clock else Status.FAILURE)
    assert found[0].advice or ". " in found[0].verdict or ": " in found[0].verdict, "it says what to do"
    assert sum(sandbox.asked_by_patient().values()) == 0


def test_what_needs_the_token_is_skipped_without_one(laid_out, checked, monkeypatch):
    sandbox = laid_out()
    monkeypatch.setenv("AIRFLOW_CONN_HEALTHEX_DEFAULT", _connection(sandbox, password="wrong-secret"))
    report = checked(sandbox).report
    assert [line.status for line in report.lines if line.step == 3] == [Status.SKIPPED]
    assert any(line.step == 4 and line.status is Status.OK for line in report.lines), "the store is checked anyway"


def test_the_recording_in_the_docs_is_what_is_printed(laid_out, checked):
    text = (Path(__file__).parents[2] / "docs/check.md").read_text()
    recording = text.split("$ healthex-check --bucket healthex-deliveries\n", 1)[1].split("```", 1)[0]
    report = checked(laid_out("several", delay=8)).report.text()
    for part in (r"127\.0\.0\.1:\d+", r"healthex-deliveries-\d+", r"\b[1-3] s\b"):
        recording, report = re.sub(part, "#", recording), re.sub(part, "#", report)
    report, recording = (each.replace("healthex-deliveries", "#") for each in (report, recording))
    assert report.split() == recording.split()


# --- what it says and to whom


def all_ids() -> list[str]:
    return [*SCENARIOS, *EXTERNAL_IDS, PROJECT_ID, "org-demo"]


@pytest.mark.parametrize("layout", ["in-name", "external"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_no_id_is_shown(laid_out, checked, layout, form):
    report = checked(laid_out(layout), **external(layout)).report
    text = getattr(report, form)()
    assert not [id_ for id_ in all_ids() if id_ in text]


def test_no_id_is_shown_with_a_failure(laid_out, checked):
    sandbox = laid_out()
    report = checked(sandbox, project="project-of-nobody").report
    assert "project-of-nobody" not in report.text()
    assert "proj…dy" in report.text()


def test_ids_are_shown_where_that_is_wanted(laid_out, checked):
    assert PROJECT_ID in checked(laid_out(), show_ids=True).report.text()


def test_no_secret_is_shown(laid_out, checked):
    sandbox = laid_out()
    text = checked(sandbox, show_ids=True).report.text()
    assert sandbox.api_secret not in text
    assert "eyJ" not in text


def test_a_shortened_id_is_recognised_by_its_owner_alone():
    short = Shortener()
    short.learn(["17d4513f-73e8", "abc", "17d4513f-73e8-9"])
    assert short("of 17d4513f-73e8, 17d4513f-73e8-9, abc; abcd") == "of 17d4…e8, 17d4…-9, ab…; abcd"


def test_the_command_prints_the_report_and_its_exit_code_is_the_verdict(laid_out, command):
    sandbox = laid_out()
    code, out, _ = command("--bucket", sandbox.bucket)
    assert code == 0
    for title in ("1 Connection", "2 Token", "3 Service", "4 Store", "5 Layout found", "6 Behaviour", "7 Advice"):
        assert title in out
    assert command("--bucket", sandbox.bucket, "--path", "e/{healthexPatientId}/")[0] == 1


def test_json_is_all_that_is_printed_with_json(laid_out, command):
    sandbox = laid_out("several")
    code, out, _ = command("--path", f"s3://{sandbox.bucket}/{FOLDER}", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["templates"][0]["path"] == FOLDER
    assert report["behaviour"]["objects"] == {"5": 11}
    assert {line["status"] for line in report["lines"]} <= {"ok", "warning", "failure", "skipped"}


def test_external_ids_come_from_a_file(laid_out, command, tmp_path):
    sandbox = laid_out("external")
    (tmp_path / "ids.txt").write_text("\n".join(EXTERNAL_IDS) + "\n")
    _, out, _ = command("--bucket", sandbox.bucket, "--external-ids", str(tmp_path / "ids.txt"))
    assert "'d/{projectId}/{externalId}/' explains 12 of 17 patients" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bucket", "b", "--sftp-conn-id", "s"], "not both"),
        (["--bucket", "b", "--path", "s3://other/d/"], "names the bucket 'other'"),
        (["--max-requests", "0"], "must be at least 1"),
        (["--external-ids", "nowhere.txt"], "--external-ids can't be read"),
    ],
)
def test_bad_arguments_are_refused(command, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
