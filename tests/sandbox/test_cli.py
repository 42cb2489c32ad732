from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import types

import pytest
import requests
from helpers.sandbox import is_free

from airflow_provider_healthex.sandbox import cli, patients

COMMAND = [sys.executable, "-m", "airflow_provider_healthex.sandbox.cli", "serve", "--port", "0", "--smtp-port", "0"]
SERVE = [*COMMAND, "--s3-port", "0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_runs_until_a_signal_and_leaves_nothing(number):
    with subprocess.Popen([*SERVE, "--delay", "0.1"], stdout=subprocess.PIPE, text=True) as process:
        net = threading.Timer(60, process.kill)
        net.start()
        lines: list[str] = []
        while "Ctrl-C" not in (lines[-1] if lines else ""):
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
        welcome = "".join(lines)
        exported = dict(re.findall(r"^export (\w+)='(.*)'$", welcome, re.MULTILINE))
        healthex = json.loads(exported["AIRFLOW_CONN_HEALTHEX_DEFAULT"])
        s3_url = json.loads(exported["AIRFLOW_CONN_AWS_DEFAULT"])["extra"]["endpoint_url"]
        assert patients.table() in welcome
        delivered = requests.post(f"{healthex['host']}/_sandbox/patients/{patients.PARTIAL}/deliver", timeout=10)
        assert delivered.status_code == 200
        assert "delivered" in process.stdout.readline()
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(10) == 0
        net.cancel()
    assert rest == "Stopped; nothing is left behind.\n"
    assert is_free(healthex["host"])
    assert is_free(s3_url)


def test_serve_by_sftp_runs_until_ctrl_c_and_leaves_nothing(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [*COMMAND, "--delivery", "sftp", "--sftp-port", "0"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        net = threading.Timer(60, process.kill)
        net.start()
        welcome = "".join(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
        exported = dict(re.findall(r"^export (\w+)='(.*)'$", welcome, re.MULTILINE))
        assert sorted(exported) == [
            "AIRFLOW_CONN_HEALTHEX_DEFAULT",
            "AIRFLOW_CONN_SFTP_DEFAULT",
            "AIRFLOW_CONN_SMTP_DEFAULT",
        ]
        server = json.loads(exported["AIRFLOW_CONN_SFTP_DEFAULT"])
        assert f"{server['host']}:{server['port']}   user {server['login']}\n" in welcome.replace(", path", "\n")
        assert welcome.count(server["password"]) == 1  # in the connection, and nowhere else
        assert server["extra"]["host_key"].startswith("ssh-ed25519 AAAA")
        healthex = json.loads(exported["AIRFLOW_CONN_HEALTHEX_DEFAULT"])
        requests.post(f"{healthex['host']}/_sandbox/patients/{patients.PARTIAL}/deliver", timeout=10)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(10) == 0
        net.cancel()
    assert re.fullmatch(r"delivered  .*bundle\.json.*\nStopped; nothing is left behind\.\n", rest)
    assert is_free(f"http://{server['host']}:{server['port']}")
    assert list(tmp_path.iterdir()) == []


def test_serve_can_have_a_cohort():
    options = ["--patients", "100", "--seed", "7", "--latency", "0.01", "--rate-limit", "500", "--spread", "1"]
    with subprocess.Popen([*SERVE, *options, "--no-earlier-deliveries"], stdout=subprocess.PIPE, text=True) as process:
        net = threading.Timer(60, process.kill)
        net.start()
        welcome = "".join(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
        process.terminate()
        process.wait(10)
        net.cancel()
    assert "patient-00001 to patient-00100" in welcome
    assert "     89  in progress" in welcome


@pytest.mark.parametrize("option", [["--patients", "-1"], ["--spread", "-1"], ["--latency", "inf"]])
def test_serve_refuses_what_cannot_be(option, capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve", *option])
    assert f"(got {option[1]})" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--s3-port", "0", "--smtp-port", "0", "--port"],
        ["--port", "0", "--smtp-port", "0", "--s3-port"],
        ["--port", "0", "--smtp-port", "0", "--delivery", "sftp", "--sftp-port"],
        ["--port", "0", "--s3-port", "0", "--smtp-port"],
    ],
)
def test_serve_says_why_it_cannot(options):
    command = [sys.executable, "-m", "airflow_provider_healthex.sandbox.cli", "serve"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = subprocess.run([*command, *options, port], capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert "could not start" in process.stderr
    assert f"127.0.0.1 port {port}. Choose another" in process.stderr
    assert "Traceback" not in process.stderr


def test_what_goes_with_the_other_delivery_is_said(capsys):
    assert cli.main(["serve", "--delivery", "sftp", "--bucket", "b"]) == 1
    assert "bucket must be left out" in capsys.readouterr().err


def test_patients_lists_every_patient_with_what_happens(capsys):
    assert cli.main(["patients"]) == 0
    text = capsys.readouterr().out
    for scenario in patients.SCENARIOS.values():
        assert re.search(rf"^{scenario.patient_id} +{scenario.external_id} +{re.escape(scenario.summary)}$", text, re.M)


def test_demo_is_handed_its_options(monkeypatch):
    demo = types.ModuleType("demo")
    demo.main = lambda delivery, dag, dags_folder, patient, airflow_home: (
        delivery, dag, dags_folder, patient, airflow_home,
    )  # fmt: skip
    demo.serve_ui = lambda delivery, dags_folder, port: (delivery, dags_folder, port)
    monkeypatch.setitem(sys.modules, "airflow_provider_healthex.sandbox.demo", demo)
    assert cli.main(["demo"]) == ("s3", None, "example_dags", patients.IN_PROGRESS, None)
    given = ["--delivery", "sftp", "--dag", "d", "--dags-folder", "f", "--patient", "p", "--airflow-home", "h"]
    assert cli.main(["demo", *given]) == ("sftp", "d", "f", "p", "h")
    assert cli.main(["airflow", "--delivery", "sftp"]) == ("sftp", "example_dags", 8080)


@pytest.mark.parametrize(
    ("missing", "delivery", "extras"),
    [
        ("aiosmtpd", "s3", "sandbox"),
        ("flask", "s3", "sandbox"),
        ("moto", "s3", "sandbox"),
        ("cryptography", "s3", "sandbox"),
        ("asyncssh", "sftp", "sandbox,sftp"),
    ],
)
def test_without_the_extra_it_says_what_to_install(missing, delivery, extras):
    code = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "from airflow_provider_healthex.sandbox import cli\n"
        f"sys.exit(cli.main(['serve', '--port', '0', '--smtp-port', '0', '--delivery', {delivery!r}]))\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert f"pip install 'airflow-provider-healthex[{extras}]'" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("arguments", [[], ["serve", "--delay", "-1"], ["serve", "--delay", "soon"], ["other"]])
def test_what_it_does_not_know_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: healthex-sandbox" in capsys.readouterr().err


def test_a_path_that_cannot_be_is_said(capsys):
    assert cli.main(["serve", "--path", "d/{patient}/"]) == 1
    assert "{healthexPatientId}" in capsys.readouterr().err


def test_the_process_environment_is_untouched():
    before = dict(os.environ)
    cli.main(["patients"])
    assert dict(os.environ) == before
