"""What a poke for many patients on an SFTP server costs: a sensor for each, and one for all."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from unittest import mock

from benchmarks.report import Report
from benchmarks.servers import patient_ids
from testing import Unavailable
from tests.helpers.openssh import SSHD, OpenSsh

#: SFTPSensors that are poked; the time of more is reckoned.
SAMPLE = 50

FILES_A_PATIENT = 10

_PATH = "d/{projectId}/{healthexPatientId}/"

_NOTES = (
    "SFTPSensor: `file_pattern` and `newer_than`, one poke after the other. Each poke opens a connection.",
    f"At most {SAMPLE} of them are poked; connections and seconds of more are reckoned from theirs.",
    "Ours: a poke of the cohort sensor, which lists 32 folders at a time over one connection.",
    f"OpenSSH on loopback. Each patient has a folder with {FILES_A_PATIENT} files of an earlier delivery.",
)


def run(patients: int = 1000) -> Report:
    """Poke once for all of them."""
    if SSHD is None:
        raise Unavailable("it needs OpenSSH's server: apt-get install openssh-server")
    ids = patient_ids(patients)
    now = datetime.now(timezone.utc).replace(microsecond=0)
    since, old = now - timedelta(hours=1), (now - timedelta(days=30)).timestamp()
    with tempfile.TemporaryDirectory(prefix="healthex-sftp-") as folder:
        server = OpenSsh(Path(folder))
        for patient_id in ids:
            for number in range(FILES_A_PATIENT):
                server.put(f"d/project-bench/{patient_id}/bundle-{number:04}.json", modified=old)
        server.start()
        try:
            with mock.patch.dict(os.environ, {"AIRFLOW_CONN_SFTP_DEFAULT": server.connection()}):
                rows = {"SFTPSensor": _sensors(ids, since), "ours": _cohort(ids, since)}
        finally:
            server.stop()
    ratio = rows["SFTPSensor"][1] / rows["ours"][1]
    return Report(
        name="sftp",
        question=f"One poke for {patients:,} patients who are missing, on an SFTP server.",
        ratio=f"ours is {ratio:.0f} x as fast as {patients:,} pokes of SFTPSensor",
        columns=("how", "connections", "s"),
        rows=[(how, f"{connections:,}", f"{seconds:.2f}") for how, (connections, seconds) in rows.items()],
        notes=_NOTES,
    )


def _sensors(ids: Sequence[str], since: datetime) -> tuple[int, float]:
    """Poke a sensor for each patient, as one would without us."""
    from airflow.providers.sftp.sensors.sftp import SFTPSensor

    sample = ids[:SAMPLE]
    sensors = [
        SFTPSensor(
            task_id=patient_id,
            path=f"d/project-bench/{patient_id}",
            file_pattern="*.json",
            newer_than=since,
        )
        for patient_id in sample
    ]
    began = time.perf_counter()
    for sensor in sensors:
        if sensor.poke({}):
            raise RuntimeError("A sensor has found what isn't there.")
    return len(ids), (time.perf_counter() - began) * len(ids) / len(sample)


def _cohort(ids: Sequence[str], since: datetime) -> tuple[int, float]:
    """Poke as the cohort sensor does, in each of its modes."""
    from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient
    from airflow_provider_healthex.storage.sftp import SftpServer

    server = SftpServer("sftp_default")
    patients = tuple(Patient(patient_id, since) for patient_id in ids)
    expectation = Expectation((_PATH,), {"projectId": "project-bench"}, patients, ArrivalRule(clock_skew=60))
    wait = ArrivalWait(expectation, server.listing)
    began = time.perf_counter()
    server.run(wait.poke())
    seconds = time.perf_counter() - began
    if len(wait.missing) != len(ids):
        raise RuntimeError("The cohort has found what isn't there.")
    return 1, seconds
