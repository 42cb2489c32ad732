"""
Take the pictures of Airflow's UI in ``docs/images``: grid, graph, a waiting log, the connection form.

``make screenshots`` starts ``healthex-sandbox airflow`` on a free port, makes runs of the example, and ends it again.
It needs Chromium: Debian's package, or another whose path is in ``CHROMIUM``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import requests
from playwright.sync_api import Page, expect, sync_playwright

IMAGES = Path(__file__).parent / "images"
DAG = "refresh_patient"
PATIENTS = {
    "arrives": "patient-in-progress",
    "needs-action": "patient-consent-expired",
    "waits": "patient-nothing-changed",
}
WIDTH, HEIGHT = 1400, 800


@contextmanager
def airflow() -> Iterator[str]:
    """Start Airflow with the sandbox behind it, and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "healthex-sandbox"), "airflow", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("Airflow:"):
                    break
            yield f"http://localhost:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def make_runs(url: str) -> str:
    """Start a run for each patient, and return the id of the last one, which waits."""
    token = requests.get(f"{url}/auth/token", timeout=30).json()["access_token"]
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {token}"
    session.patch(f"{url}/api/v2/dags/{DAG}", json={"is_paused": False}, timeout=30).raise_for_status()
    for run in session.get(f"{url}/api/v2/dags/{DAG}/dagRuns", timeout=30).json()["dag_runs"]:
        # Of an earlier time: one run at a time is active, and only an ended one can be deleted.
        address = f"{url}/api/v2/dags/{DAG}/dagRuns/{run['dag_run_id']}"
        session.patch(address, json={"state": "failed"}, timeout=30)
        session.delete(address, timeout=30).raise_for_status()
    started = f"{datetime.now(timezone.utc):%H%M%S}"  # an earlier run's log would be continued
    for name, patient_id in PATIENTS.items():
        run_id = f"{name}-{started}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": {"patient_id": patient_id}}
        session.post(f"{url}/api/v2/dags/{DAG}/dagRuns", json=body, timeout=30).raise_for_status()
        wanted = ("deferred",) if name == "waits" else ("success", "upstream_failed", "failed")
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            task = "arrival" if name == "waits" else "read"
            answer = session.get(f"{url}/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances/{task}", timeout=30)
            if answer.json().get("state") in wanted:
                break
            time.sleep(1)
        else:
            raise TimeoutError(f"run {run_id!r} did not get to {wanted}")
    time.sleep(5)  # for a few pokes in the waiting log
    return run_id


def take(page: Page, url: str, waiting: str) -> None:
    """Take the pictures."""

    def shoot(name: str, height: int = HEIGHT) -> None:
        page.wait_for_timeout(1500)
        page.screenshot(path=IMAGES / f"{name}.png", clip={"x": 0, "y": 0, "width": WIDTH, "height": height})

    page.goto(f"{url}/dags/{DAG}")
    expect(page.get_by_text("refresh").first).to_be_visible()
    shoot("grid", 560)

    page.goto(f"{url}/dags/{DAG}/runs/{waiting}/tasks/arrival")
    expect(page.get_by_text("Waiting:").first).to_be_visible()
    page.keyboard.press("w")  # wraps long lines
    shoot("log", 700)

    page.goto(f"{url}/dags/{DAG}/runs/{waiting}")
    page.get_by_role("button", name=re.compile("graph", re.IGNORECASE)).first.click()
    page.wait_for_timeout(1000)
    shoot("graph", 560)

    page.goto(f"{url}/connections")
    page.get_by_role("button", name="Add Connection").click()
    page.get_by_text("Select Connection Type").click(force=True)
    page.keyboard.type("HealthEx")
    page.keyboard.press("Enter")
    shoot("connection")


def main() -> int:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of an Airflow that is running already")
    given = parser.parse_args().url
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        print("Chromium is missing: apt-get install chromium", file=sys.stderr)
        return 2
    with airflow() if not given else _given(given) as url, sync_playwright() as playwright:
        waiting = make_runs(url)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        try:
            take(page, url, waiting)
        except Exception:
            page.screenshot(path="screenshots-failed.png")
            raise
        finally:
            browser.close()
    return 0


@contextmanager
def _given(url: str) -> Iterator[str]:
    yield url


if __name__ == "__main__":
    sys.exit(main())
