"""The example DAG from end to end, with each step printed as it happens; and Airflow's UI on the sandbox."""

from __future__ import annotations

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
from typing import Any, Literal

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

#: The example of each delivery.
DAGS = {"s3": "refresh_patient", "sftp": "refresh_patient_sftp"}

#: Of Airflow's log: the provider's own lines, and the last task's output.
_SHOWN = re.compile(r"(Waiting: .*?until the timeout|Arrived for patient .*?\+00:00|Read from \w+: .*?\})")
_FAILED = re.compile(r"AirflowFailException: (.*)|AirflowSensorTimeout: (.*)|AirflowSkipException: (.*)")


def main(
    delivery: Literal["s3", "sftp"], dags_folder: str, dag: str | None, patient: str, airflow_home: str | None
) -> int:
    """Run the demo, and return 0 if the DAG succeeded."""
    dag = dag or DAGS[delivery]
    if not (Path(dags_folder) / f"{dag}.py").is_file():
        print(
            f"There is no {dag}.py in {dags_folder}/: run this in a checkout of the project, or give --dags-folder.",
            file=sys.stderr,
        )
        return 2
    home_path = Path(airflow_home) if airflow_home else DEFAULT_HOME / "demo"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    progress = Progress(patient)
    try:
        with Sandbox(delivery=delivery, delay=4, on_event=progress.on_event) as sandbox:
            home = AirflowHome(home_path, Path(dags_folder), {**sandbox.airflow_environment(), **QUICK})
            return _run(dag, progress, sandbox, home)
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.")
        return 130
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def _run(dag: str, progress: Progress, sandbox: Sandbox, home: AirflowHome) -> int:
    by_s3 = sandbox.delivery == "s3"
    storage = f"S3 at {sandbox.s3_url}" if by_s3 else f"an SFTP server at {sandbox.sftp_server.address}"
    progress.show(f"The sandbox plays HealthEx at {sandbox.api_url} and {storage}.")
    place, usual = ("In the bucket", "A key") if by_s3 else ("On the server", "A file")
    for file in sandbox.files(progress.patient_id):
        progress.show(f"{place} already: {file.path}, {file.size:,} bytes, of {file.modified:%Y-%m-%d}.")
    progress.show(f"{usual} sensor would pass at once, on that old file.")
    progress.show("Preparing a private Airflow in the checkout (about 10 s) …")
    home.migrate(afresh=True)
    progress.show(f"Running the DAG {dag} on it (Airflow takes a few seconds to start) …")

    parameters = {"patient_id": progress.patient_id, "path": sandbox.path}
    if by_s3:
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
                progress.on_log_line(line)
        code = process.wait()
    progress.conclude(code, sandbox.asked(progress.patient_id))
    print(_further_steps(dag, log, sandbox.delivery))
    return 0 if code == 0 and progress.arrived else code or 1


def _further_steps(dag: str, log: Path, delivery: str) -> str:
    by_sftp = " --delivery sftp" if delivery == "sftp" else ""
    return (
        f"\nThe whole log:       {os.path.relpath(log)}\n"
        f"The DAG:             example_dags/{dag}.py\n"
        f"In Airflow's UI:     make airflow{' DELIVERY=sftp' if by_sftp else ''}\n"
        "Other outcomes:      .venv/bin/healthex-sandbox patients, then\n"
        f"                     .venv/bin/healthex-sandbox demo{by_sftp} --patient {patients.CONSENT_EXPIRED}\n"
        "Your own account:    .venv/bin/healthex-check --bucket YOUR-BUCKET   (docs/check.md; bills nothing)\n"
        "Your own Airflow:    README.md"
    )


class Progress:
    """The steps of one patient's refresh, from the sandbox's events and Airflow's log, in their order."""

    def __init__(self, patient_id: str) -> None:
        self.patient_id = patient_id
        self.arrived = False
        self._requested_at: float | None = None
        self._last = ""
        self._failure = ""
        self._lock = threading.Lock()

    def show(self, text: str) -> None:
        """Print a step, with the time."""
        with self._lock:
            print(f"{datetime.now(timezone.utc):%H:%M:%S}  {text}", flush=True)

    def on_event(self, event: str, details: dict[str, Any]) -> None:
        """Show an event of the sandbox."""
        if details.get("patient_id") != self.patient_id:
            return
        if event == "requested":
            self._requested_at = time.monotonic()
            self.show("HealthEx (sandbox): received the request to update the patient's data.")
        elif event == "answered":
            answer = details.get("message") or f"HTTP {details.get('status')}"
            self.show(f"HealthEx (sandbox): answered {answer} {details.get('reason') or ''}".rstrip())
        elif event == "delivered" and self._requested_at is not None:
            after = time.monotonic() - self._requested_at
            file = f"{details['key']}, {details['size']:,} bytes"
            self.show(f"HealthEx (sandbox): delivered {file}, after {after:.0f} s.")

    def on_log_line(self, line: str) -> None:
        """Show a line of Airflow's log, if it is one of the provider's."""
        failed = _FAILED.search(line)
        if failed:
            self._failure = next(filter(None, failed.groups()))
        shown = _SHOWN.search(line)
        if not shown:
            return
        text = shown.group(1)
        same = re.sub(r"\d+", "", text)
        if same != self._last:  # a poke each second is news only where more than the figures changes
            self.show(f"Airflow: {text}")
        self._last = same
        self.arrived = self.arrived or text.startswith("Arrived")

    def conclude(self, code: int, requests: int) -> None:
        """Show the outcome."""
        count = f"{requests} request{'' if requests == 1 else 's'} to HealthEx."
        if code == 0 and self.arrived:
            self.show(f"Done: the refreshed data has arrived and was read, after {count}")
        else:
            reason = f": {self._failure.strip()}" if self._failure else "."
            self.show(f"The run did not succeed{reason} It made {count}")


def serve_ui(delivery: Literal["s3", "sftp"], dags_folder: str, port: int) -> int:
    """Run ``airflow standalone`` with the sandbox behind it until Ctrl-C."""
    if not _is_free(port):
        print(f"Port {port} is in use: end the program that uses it, or give --port.", file=sys.stderr)
        return 1
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: ended.put(number))
    with Sandbox(delivery=delivery, delay=10) as sandbox:
        url = f"http://localhost:{port}"
        home = AirflowHome(DEFAULT_HOME / "ui", Path(dags_folder), {**QUICK, **_ui_settings(port)})
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
