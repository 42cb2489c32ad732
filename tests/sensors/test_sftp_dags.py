"""The SFTP sensor as Airflow runs it: its connection through workers and triggers, what it has seen in the store."""

from __future__ import annotations

import threading
import time

import pytest
from helpers.openssh import OpenSsh
from helpers.places import FOLDER
from helpers.support import AIRFLOW, load_dags, reschedules, utc_now, xcom

pytest.importorskip("asyncssh", reason="the extra sftp isn't installed")

HAS_STATE_STORE = AIRFLOW >= (3, 3)


@pytest.fixture(scope="module")
def dags(airflow_database):
    return load_dags("dags/sftp_arrival.py").dags


@pytest.mark.parametrize("mode", ["poke", pytest.param("reschedule", marks=reschedules), "deferred"])
def test_each_mode_waits_for_what_is_newer_than_its_first_look(sftp: OpenSsh, dags, mode):
    """By a clock that is hours behind, but where nothing keeps what the first look showed."""
    off = -5 * 3600 if mode != "reschedule" or HAS_STATE_STORE else 0
    sftp.put(FOLDER + "bundle.json", b"old", modified=time.time() + off - 24 * 3600)
    ended, before = threading.Event(), sftp.visits()

    def deliver() -> None:
        while sftp.visits() == before:  # until the first look
            if ended.wait(0.1):
                return
        sftp.put(FOLDER + "bundle.json", b"refreshed", modified=time.time() + off)

    thread = threading.Thread(target=deliver)
    thread.start()
    try:
        run = dags[mode].test(run_conf={"since": utc_now().isoformat()})
    finally:
        ended.set()
        thread.join()
    assert run.state == "success"
    assert xcom(run, "arrival")["total_bytes"] == len("refreshed")


def test_it_can_be_mapped_and_its_path_manifest_and_connection_rendered(sftp: OpenSsh, dags, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_RESEARCH", sftp.connection())
    for patient in ("patient-1", "patient-2"):
        sftp.put(f"in/{patient}/bundle.json")
    run = dags["mapped"].test(run_conf={"path": "in/{healthexPatientId}/", "sftp_conn_id": "research"})
    assert run.state == "success"
    for index, patient in enumerate(("patient-1", "patient-2")):
        result = xcom(run, "arrival", index)
        assert result["keys"] == [f"in/{patient}/bundle.json"]
        assert result["manifest"].endswith(f"/manifests/{patient}-{len(run.run_id)}.jsonl")
