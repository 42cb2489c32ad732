"""What a poke for many patients on an SFTP server costs: a sensor for each, and one for all."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from unittest import mock

from benchmarks.report import Report
from benchmarks.servers import patient_ids
from testing import Unavailable
from tests.helpers.openssh import SSHD, OpenSsh

#: SFTPSensors that are poked; the time of more is reckoned.
SAMPLE = 25

FILES_A_PATIENT = 10

#: How the server logs a new connection.
_ACCEPTED = "Accepted publickey"

_PATH = "d/{projectId}/{healthexPatientId}/"

_NOTES = (
    "SFTPSensor: `file_pattern` and `newer_than`, one poke after the other.",
    "Its poke opens a connection for the listing, and another for the time of each file.",
    "SFTPHook: `describe_directory` for each patient, as a `@task.sensor` could, over a connection each.",
    f"Of both {SAMPLE} are poked, and seconds and connections of more are reckoned from theirs.",
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
                rows = {
                    "SFTPSensor": _each(server, ids, _sensor_poke, since),
                    "SFTPHook": _each(server, ids, _hook_poke, since),
                    "ours": _cohort(server, ids, since),
                }
        finally:
            server.stop()
    (_, theirs), (_, hooks), (_, ours) = rows.values()
    return Report(
        name="sftp",
        question=f"One poke for {patients:,} patients who are missing, on an SFTP server.",
        ratio=f"{theirs / ours:.0f} x as fast as SFTPSensors, {hooks / ours:.0f} x as fast as SFTPHook each time",
        columns=("how", "connections", "s"),
        rows=[(how, f"{connections:,}", f"{seconds:.2f}") for how, (connections, seconds) in rows.items()],
        notes=_NOTES,
    )


def _measure(server: OpenSsh, poke: Callable[[], object]) -> tuple[int, float]:
    """Return the connections and seconds of what pokes."""
    log = server.folder / "sshd.log"
    before, began = log.read_text().count(_ACCEPTED), time.perf_counter()
    poke()
    seconds = time.perf_counter() - began
    return log.read_text().count(_ACCEPTED) - before, seconds


def _each(
    server: OpenSsh, ids: Sequence[str], poke: Callable[[str, datetime], bool], since: datetime
) -> tuple[int, float]:
    """Poke for each patient, as one would without us."""
    sample = ids[:SAMPLE]

    def poke_each() -> None:
        if any(poke(patient_id, since) for patient_id in sample):
            raise RuntimeError("A poke has found what isn't there.")

    connections, seconds = _measure(server, poke_each)
    share = len(ids) / len(sample)
    return round(connections * share), seconds * share


def _sensor_poke(patient_id: str, since: datetime) -> bool:
    from airflow.providers.sftp.sensors.sftp import SFTPSensor

    path = f"d/project-bench/{patient_id}"
    return bool(SFTPSensor(task_id=patient_id, path=path, file_pattern="*.json", newer_than=since).poke({}))


def _hook_poke(patient_id: str, since: datetime) -> bool:
    from airflow.providers.sftp.hooks.sftp import SFTPHook

    files = SFTPHook("sftp_default").describe_directory(f"d/project-bench/{patient_id}")
    return any(file["modify"] >= f"{since:%Y%m%d%H%M%S}" for file in files.values())


def _cohort(server: OpenSsh, ids: Sequence[str], since: datetime) -> tuple[int, float]:
    """Poke as the cohort sensor does, in each of its modes."""
    from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient
    from airflow_provider_healthex.storage.sftp import SftpServer

    storage = SftpServer("sftp_default")
    patients = tuple(Patient(patient_id, since) for patient_id in ids)
    expectation = Expectation((_PATH,), {"projectId": "project-bench"}, patients, ArrivalRule(clock_skew=60))
    wait = ArrivalWait(expectation, storage.listing)
    measured = _measure(server, lambda: storage.run(wait.poke()))
    if len(wait.missing) != len(ids):
        raise RuntimeError("The cohort has found what isn't there.")
    return measured
