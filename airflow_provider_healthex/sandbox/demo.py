"""The example DAG from end to end, told to a newcomer as it happens; and Airflow's UI on the sandbox."""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sandbox.airflow import DEFAULT_HOME, AirflowHome
from airflow_provider_healthex.sandbox.server import Sandbox

#: The sandbox delivers within seconds, so the examples need not wait as for HealthEx. The time limits leave a person
#: time to read a mail and to act.
QUICK = {
    "HEALTHEX_EXAMPLE_POKE_INTERVAL": "1",
    "HEALTHEX_EXAMPLE_QUIET_PERIOD": "2",
    "HEALTHEX_EXAMPLE_TIMEOUT": "300",
    "HEALTHEX_EXAMPLE_RESPONSE_TIMEOUT": "300",
    "HEALTHEX_EXAMPLE_RETRY_DELAY": "10",
}

#: Which example goes with which delivery.
DAGS = {"s3": "refresh_patient", "sftp": "refresh_patient_sftp"}

#: What of Airflow's log tells the story: the provider's own lines, and what the last task printed.
_TOLD = re.compile(r"(Waiting: .*?until the timeout|Arrived for patient .*?\+00:00|Read from \w+: .*?\})")
_FAILED = re.compile(r"AirflowFailException: (.*)|AirflowSensorTimeout: (.*)|AirflowSkipException: (.*)")


def main(options: argparse.Namespace) -> int:
    """Run the demo, and return 0 if the DAG succeeded."""
    dags_folder = Path(options.dags_folder)
    dag = options.dag or DAGS[options.delivery]
    if not (dags_folder / f"{dag}.py").is_file():
        print(
            f"There is no {dag}.py in {dags_folder}/: run this in a checkout of the project, or give --dags-folder.",
            file=sys.stderr,
        )
        return 2
    home_path = Path(options.airflow_home) if options.airflow_home else DEFAULT_HOME / "demo"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    story = Story(options.patient)
    try:
        with Sandbox(delivery=options.delivery, delay=4, on_event=story.event) as sandbox:
            return _run(dag, story, sandbox, AirflowHome(home_path, dags_folder, _variables(sandbox)))
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.")
        return 130
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def _variables(sandbox: Sandbox) -> dict[str, str]:
    return {**sandbox.airflow_environment(), **QUICK}


def _run(dag: str, story: Story, sandbox: Sandbox, home: AirflowHome) -> int:
    story.tell(f"The sandbox plays HealthEx at {sandbox.api_url} and {_where(sandbox)}.")
    place, usual = ("In the bucket", "A key") if sandbox.delivery == "s3" else ("On the server", "A file")
    for file in sandbox.files(story.patient_id):
        story.tell(f"{place} already: {file.path}, {file.size:,} bytes, of {file.modified:%Y-%m-%d}.")
    story.tell(f"{usual} sensor would pass at once, on that old file.")
    story.tell("Preparing a private Airflow in the checkout (about 10 s) …")
    home.migrate(afresh=True)
    story.tell(f"Running the DAG {dag} on it (Airflow takes a few seconds to start) …")

    parameters = {"patient_id": story.patient_id, "path": sandbox.path}
    if sandbox.delivery == "s3":
        parameters["bucket"] = sandbox.bucket
    log = home.path / "run.log"
    with (
        log.open("w") as whole,
        home.start(
            "dags", "test", dag, "--conf", json.dumps(parameters),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                whole.write(line)
                story.read(line)
        code = process.wait()
    story.conclude(code, sandbox.asked(story.patient_id))
    print(_where_next(dag, log, sandbox.delivery))
    return 0 if code == 0 and story.arrived else code or 1


def _where(sandbox: Sandbox) -> str:
    if sandbox.delivery == "s3":
        return f"S3 at {sandbox.s3_url}"
    return f"an SFTP server at {sandbox.sftp_server.host}:{sandbox.sftp_server.port}"


def _where_next(dag: str, log: Path, delivery: str) -> str:
    by_sftp = " --delivery sftp" if delivery == "sftp" else ""
    return (
        f"\nThe whole log:       {os.path.relpath(log)}\n"
        f"The DAG:             example_dags/{dag}.py\n"
        f"In Airflow's UI:     make airflow{' DELIVERY=sftp' if by_sftp else ''}\n"
        "Other outcomes:      .venv/bin/healthex-sandbox patients, then\n"
        f"                     .venv/bin/healthex-sandbox demo{by_sftp} --patient {patients.CONSENT_EXPIRED}\n"
        "Your own Airflow:    README.md"
    )


class Story:
    """
    What happened, in the order it happened: what the sandbox saw, and what Airflow logged.

    :param patient_id: whose story it is.
    """

    def __init__(self, patient_id: str) -> None:
        self.patient_id = patient_id
        self.arrived = False
        self._asked_at: float | None = None
        self._last = ""
        self._failure = ""
        self._lock = threading.Lock()

    def tell(self, text: str) -> None:
        """Print a step, with the time."""
        with self._lock:
            print(f"{datetime.now(timezone.utc):%H:%M:%S}  {text}", flush=True)

    def event(self, event: str, details: dict[str, Any]) -> None:
        """Tell what the sandbox saw."""
        if details.get("patient_id") != self.patient_id:
            return
        if event == "asked":
            self._asked_at = time.monotonic()
            self.tell("HealthEx (sandbox): asked to update the patient's data.")
        elif event == "answered":
            answer = details.get("message") or f"HTTP {details.get('status')}"
            self.tell(f"HealthEx (sandbox): answered {answer} {details.get('reason') or ''}".rstrip())
        elif event == "delivered" and self._asked_at is not None:
            after = time.monotonic() - self._asked_at
            what = f"{details['key']}, {details['size']:,} bytes"
            self.tell(f"HealthEx (sandbox): delivered {what}, after {after:.0f} s.")

    def read(self, line: str) -> None:
        """Tell what a line of Airflow's log says, if it is part of the story."""
        failed = _FAILED.search(line)
        if failed:
            self._failure = next(filter(None, failed.groups()))
        told = _TOLD.search(line)
        if not told:
            return
        text = told.group(1)
        same = re.sub(r"\d+", "", text)
        if same != self._last:  # a poke a second is news only where something else is said
            self.tell(f"Airflow: {text}")
        self._last = same
        self.arrived = self.arrived or text.startswith("Arrived")

    def conclude(self, code: int, asked: int) -> None:
        """Tell the outcome."""
        times = f"{asked} time{'' if asked == 1 else 's'}"
        if code == 0 and self.arrived:
            self.tell(f"Done: the refreshed data has arrived and was read. HealthEx was asked {times}.")
        else:
            reason = f": {self._failure.strip()}" if self._failure else "."
            self.tell(f"The run did not succeed{reason} HealthEx was asked {times}.")


def serve_ui(options: argparse.Namespace) -> int:
    """Run ``airflow standalone`` with the sandbox behind it until Ctrl-C."""
    if not _is_free(options.port):
        print(f"Port {options.port} is taken: end what uses it, or give --port.", file=sys.stderr)
        return 1
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: ended.put(number))
    with Sandbox(delivery=options.delivery, delay=10) as sandbox:
        url = f"http://localhost:{options.port}"
        home = AirflowHome(DEFAULT_HOME / "ui", Path(options.dags_folder), {**QUICK, **_ui_settings(options.port)})
        print("Preparing Airflow …", flush=True)
        home.migrate()
        home.add_connections(sandbox.connections())
        log = home.path / "standalone.log"
        with log.open("w") as file, home.start("standalone", stdout=file, stderr=subprocess.STDOUT) as process:
            if not _wait_until_healthy(url, process, ended):
                print(f"Airflow did not start; see {os.path.relpath(log)}", file=sys.stderr)
                return 1
            bucket = f"bucket {sandbox.bucket}, " if sandbox.delivery == "s3" else ""
            print(
                f"\nAirflow:    {url}   (Ctrl-C ends it)\n"
                f"Trigger:    {url}/dags/{DAGS[sandbox.delivery]}   {bucket}path {sandbox.path}\n"
                f"Sandbox:    {sandbox.api_url}/_sandbox/state   mails: {sandbox.api_url}/_sandbox/mails\n"
                f"Log:        {os.path.relpath(log)}\n\n{patients.table()}",
                flush=True,
            )
            while ended.empty() and process.poll() is None:
                time.sleep(0.2)
    print("Stopped; nothing is left running.")
    return 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _ui_settings(port: int) -> dict[str, str]:
    return {
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__BASE_URL": f"http://localhost:{port}",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://localhost:{port}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "true",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        # Airflow 2.11
        "AIRFLOW__WEBSERVER__WEB_SERVER_PORT": str(port),
        "AIRFLOW__WEBSERVER__WEB_SERVER_HOST": "127.0.0.1",
    }


def _wait_until_healthy(url: str, process: subprocess.Popen[str], ended: queue.SimpleQueue[int]) -> bool:
    import requests

    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None and ended.empty():
        for path in ("/api/v2/monitor/health", "/health"):
            try:
                if requests.get(url + path, timeout=2).ok:
                    return True
            except requests.RequestException:
                pass
        time.sleep(0.5)
    return not ended.empty()
