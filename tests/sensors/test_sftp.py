"""The arrival sensor against a real OpenSSH server: what a bucket hasn't, in each of its modes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout, TaskDeferred
from helpers.openssh import OpenSsh
from helpers.places import FOLDER, PATH, arguments, update
from helpers.support import MODES, context_of, run_sensor

asyncssh = pytest.importorskip("asyncssh", reason="the extra sftp isn't installed")

from helpers.odd_sftp import OddSftp  # noqa: E402

from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError  # noqa: E402
from airflow_provider_healthex.sensors.memory import STORE_KEY  # noqa: E402
from airflow_provider_healthex.sensors.sftp import HealthExSftpDataArrivalSensor  # noqa: E402
from airflow_provider_healthex.storage.sftp import POKE_LIMIT, REQUEST_LIMIT  # noqa: E402

HOUR = 3600


def sensor(mode: str = "poke", **changes) -> HealthExSftpDataArrivalSensor:
    return HealthExSftpDataArrivalSensor(**arguments(mode, **{"path": PATH, **changes}))


class Store(dict):
    """The little of a task's state store that is used, as JSON."""

    def get(self, key):
        return json.loads(self[key]) if key in self else None

    def set(self, key, value):
        self[key] = json.dumps(value)


def fresh_file() -> dict[str, int]:
    """Return what an SFTP server tells of a file that has just come."""
    now = int(time.time())
    return {"permissions": 0o100644, "size": 2, "atime": now, "mtime": now}


def holding(name: str, longname: str = "", **told: int) -> Callable[..., AsyncIterator[asyncssh.SFTPName]]:
    """Return what lists every folder as one with this file, of which so much is told."""

    async def listing(*_: object) -> AsyncIterator[asyncssh.SFTPName]:
        yield asyncssh.SFTPName(name.encode(), longname, asyncssh.SFTPAttrs(**told))

    return listing


class FailingStore(Store):
    """A state store of an API server that doesn't answer so many times."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def get(self, key):
        self._answer()
        return super().get(key)

    def set(self, key, value):
        self._answer()
        super().set(key, value)

    def _answer(self) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise RuntimeError("API server: 500")


def context_with_store(task) -> dict:
    return {**context_of(task), "task_state_store": Store()}


@pytest.fixture
def d(sftp: OpenSsh) -> OpenSsh:
    """The server, with the path's first folder."""
    (sftp.served / "d").mkdir()
    return sftp


def test_an_old_delivery_lets_an_sftp_sensor_pass_and_not_this_one(d: OpenSsh):
    from airflow.providers.sftp.sensors.sftp import SFTPSensor

    d.put(FOLDER + "bundle.json", modified=time.time() - 24 * HOUR)
    foreign = SFTPSensor(task_id="foreign", path=f"{d.served}/{FOLDER}bundle.json")
    assert foreign.poke(context_of(foreign)) is True
    assert not sensor().poke(context_of(sensor()))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("off", [-5 * HOUR, 9 * HOUR])
def test_a_server_whose_clock_is_hours_off_delivers_all_the_same(d: OpenSsh, mode, off, later):
    """In reschedule mode with the state store of Airflow 3.3, below which each look is a first one."""
    d.put(FOLDER + "bundle.json", b"old", modified=time.time() + off - 300)
    later(2, lambda: d.put(FOLDER + "bundle.json", b"refreshed", modified=time.time() + off))
    waiting = sensor(mode, quiet_period=2)
    began = time.monotonic()

    result = run_sensor(waiting, context=context_with_store(waiting)).result

    assert result["total_bytes"] == len("refreshed")
    assert time.monotonic() - began >= 4


def test_below_airflow_3_3_a_rescheduled_wait_says_what_it_thinks_of_the_clock(d: OpenSsh, airflow_database):
    d.put(FOLDER + "bundle.json", modified=time.time() - 5 * HOUR)
    with pytest.raises(AirflowSensorTimeout, match=r"newest .* is older than the request"):
        run_sensor(sensor("reschedule", timeout=1))


def test_what_the_first_look_showed_survives_a_killed_worker_and_not_another_request(d: OpenSsh):
    d.put(FOLDER + "bundle.json", modified=time.time() - 6 * HOUR)
    asked, context = update(), context_with_store(sensor())
    assert not sensor(update=asked).poke(context)
    kept = context["task_state_store"][STORE_KEY]
    assert "patient" not in kept
    assert "bundle" not in kept

    d.put(FOLDER + "bundle.json", modified=time.time() - 5 * HOUR)
    assert sensor(update=asked).poke(context)
    assert not sensor(update=update(requested_at="2026-01-01T00:00:00+00:00"), clock_skew=0, min_objects=2).poke(
        context
    )
    assert not sensor(update=update(patient_id="patient-2")).poke(context)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_state_store_that_does_not_answer_for_a_while_is_waited_for(d: OpenSsh, mode, failures, task_log):
    d.put(FOLDER + "bundle.json")
    waiting = sensor(mode, soft_fail=True)
    context = {**context_of(waiting), "task_state_store": FailingStore(failures)}
    assert run_sensor(waiting, context=context).result["object_count"] == 1
    assert "task state store did not answer (RuntimeError)" in task_log()


def test_a_state_store_that_takes_nothing_is_warned_of(d: OpenSsh, task_log):
    class Reading(Store):
        def set(self, key, value):
            raise RuntimeError("404")

    waiting = sensor()
    assert not waiting.poke({**context_of(waiting), "task_state_store": Reading()})
    assert "task state store did not take what this poke showed (RuntimeError)" in task_log()


def test_what_another_server_showed_is_forgotten_when_the_connection_is_corrected(d: OpenSsh, monkeypatch):
    asked, context = update(), context_with_store(sensor())
    with OddSftp() as wrong, monkeypatch.context() as before:
        before.setenv("AIRFLOW_CONN_SFTP_DEFAULT", wrong.connection())
        assert not sensor(update=asked).poke(context)
    d.put(FOLDER + "bundle.json", modified=time.time() - 20 * HOUR)
    assert not sensor(update=asked).poke(context)


@pytest.mark.parametrize("mode", MODES)
class TestFilesBeingWritten:
    def test_a_file_that_grows_arrives_whole(self, d: OpenSsh, mode, later):
        def write() -> None:
            for piece in range(1, 16):
                d.put(FOLDER + "bundle.json", b"x" * piece)
                time.sleep(0.2)

        later(0, write)
        assert run_sensor(sensor(mode, quiet_period=2.5, clock_skew=0)).result["total_bytes"] == 15

    def test_a_file_is_seen_when_it_gets_its_name(self, d: OpenSsh, mode, later):
        file = d.served / FOLDER / "bundle.json"
        d.put(FOLDER + "bundle.json", b"old", modified=time.time() - 24 * HOUR)
        d.put(FOLDER + "bundle.json.filepart", b"refreshed")
        later(1.5, lambda: (d.served / FOLDER / "bundle.json.filepart").rename(file))
        began = time.monotonic()

        assert run_sensor(sensor(mode)).result["total_bytes"] == len("refreshed")
        assert time.monotonic() - began > 1.4


@pytest.mark.parametrize("mode", MODES)
class TestLinks:
    def test_a_link_among_the_files_is_passed_over(self, d: OpenSsh, mode):
        d.put("d/other/patient/secret.json")
        d.put(FOLDER + "a.json")
        (d.served / FOLDER / "elsewhere").symlink_to(d.served / "d/other")
        (d.served / FOLDER / "b.json").symlink_to(d.served / "d/other/patient/secret.json")
        assert run_sensor(sensor(mode)).result["keys"] == [FOLDER + "a.json"]

    def test_a_patients_folder_that_is_a_link_is_not_followed(self, d: OpenSsh, mode, airflow_database):
        d.put("d/project-1/patient-2/a.json")
        (d.served / "d/project-1/patient-1").symlink_to("patient-2")
        with pytest.raises(AirflowSensorTimeout, match="symbolic link on the server, which is not followed"):
            run_sensor(sensor(mode, timeout=0.5))

    def test_the_paths_fixed_part_may_be_a_link(self, sftp: OpenSsh, mode):
        sftp.put("data/project-1/patient-1/a.json")
        (sftp.served / "d").symlink_to("data")
        assert run_sensor(sensor(mode)).result["keys"] == [FOLDER + "a.json"]


@pytest.mark.parametrize("mode", MODES)
def test_a_folder_of_ten_thousand_files(d: OpenSsh, mode):
    asked = update()
    folder = d.served / FOLDER
    folder.mkdir(parents=True)
    for number in range(10_000):
        (folder / f"{number:05}.json").touch()

    result = run_sensor(sensor(mode, update=asked, quiet_period=1, clock_skew=0)).result

    assert result["object_count"] == 10_000
    assert len(result["keys"]) == 1_000
    assert result["keys_truncated"] is True


@pytest.mark.parametrize("mode", MODES)
def test_a_path_from_the_root(sftp: OpenSsh, mode):
    sftp.put(FOLDER + "a.json")
    result = run_sensor(sensor(mode, path=f"{sftp.served}/{PATH}")).result
    assert result["keys"] == [f"{sftp.served}/{FOLDER}a.json"]
    assert result["uri"] == f"sftp://127.0.0.1:{sftp.port}{sftp.served}/{FOLDER}"


@pytest.mark.parametrize(
    ("path", "manifest"),
    [(PATH, f"./{PATH}m.jsonl"), (f".//{PATH}", f"{PATH}m.jsonl"), (f"/x/..//{PATH}", f"/{PATH}/m.jsonl")],
)
def test_a_manifest_among_the_data_is_refused_however_it_is_spelled(d: OpenSsh, path, manifest):
    with pytest.raises(HealthExConfigurationError, match="outside the path"):
        sensor(path=path, manifest_path=manifest)
    late = sensor(path="{{ params.path }}", manifest_path="{{ params.manifest }}")
    late.path, late.manifest_path = path, manifest
    with pytest.raises(AirflowFailException, match="outside the path"):
        run_sensor(late)


@pytest.mark.parametrize("path", ["~/d/{healthexPatientId}/", "sftp://host/d/{healthexPatientId}/"])
@pytest.mark.parametrize("argument", ["path", "manifest_path"])
def test_what_sftp_would_take_literally_is_refused(d: OpenSsh, path, argument):
    message = f"{argument} is .* give the path alone"
    with pytest.raises(HealthExConfigurationError, match=message):
        sensor(**{argument: path})
    late = sensor(**{argument: "{{ params.path }}"})
    setattr(late, argument, path)
    with pytest.raises(AirflowFailException, match=message):
        run_sensor(late)


@pytest.mark.parametrize("mode", MODES)
class TestHostKeys:
    """They are verified unless the connection says otherwise, and soft_fail hides no doubt."""

    @pytest.fixture
    def nobody_known(self, monkeypatch, tmp_path) -> Path:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".ssh").mkdir()
        return tmp_path / ".ssh/known_hosts"

    @staticmethod
    def connect(monkeypatch, server: OpenSsh, **extra) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection(**extra))

    def test_a_server_nobody_knows_is_refused(self, d: OpenSsh, mode, monkeypatch, nobody_known):
        self.connect(monkeypatch, d, host_key=None)
        d.put(FOLDER + "a.json")
        with pytest.raises(AirflowFailException, match=r"worker, .*HostKeyNotVerifiable.*host_key"):
            run_sensor(sensor(mode, soft_fail=True))

    def test_another_key_than_the_known_one_is_refused(self, d: OpenSsh, mode, monkeypatch):
        stranger = " ".join((d.folder / "stranger_key.pub").read_text().split()[:2])
        self.connect(monkeypatch, d, host_key=stranger)
        with pytest.raises(AirflowFailException, match="HostKeyNotVerifiable"):
            run_sensor(sensor(mode, soft_fail=True))

    def test_a_key_that_changes_in_the_middle_of_the_wait_is_refused(self, d: OpenSsh, mode, later):
        config = d.folder / "sshd_config"

        def change() -> None:
            config.write_text(config.read_text().replace("/host_key\n", "/stranger_key\n"))
            d.stop()
            d.start()

        later(1, change)
        try:
            with pytest.raises(AirflowFailException, match="HostKeyNotVerifiable"):
                run_sensor(sensor(mode, soft_fail=True))
        finally:
            time.sleep(0.1)
            d.deny("")

    def test_a_known_hosts_file_does(self, d: OpenSsh, mode, monkeypatch, nobody_known):
        self.connect(monkeypatch, d, host_key=None)
        nobody_known.write_text(f"[127.0.0.1]:{d.port} {d.host_key}\n")
        d.put(FOLDER + "a.json")
        assert run_sensor(sensor(mode)).result["object_count"] == 1

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("127.0.0.1 {kind} {key}", "a line of ssh-keyscan or known_hosts: leave out the host"),
            ("[127.0.0.1]:2222 {kind} {key}", "a line of ssh-keyscan or known_hosts: leave out the host"),
            ("# 127.0.0.1:22 SSH-2.0-x\n127.0.0.1 {kind} {key}\n", "a line of ssh-keyscan or known_hosts"),
            ("|1|aGFzaA==|aGFzaA== {kind} {key}", "a line of ssh-keyscan or known_hosts"),
            ("{key}", "give the key's type and the key"),
            ("{kind}", "give the key's type and the key"),
            ("{kind} {key:.20}", "give the key's type and the key"),
            ("SHA256:nothing", "give the key's type and the key"),
            ("", "give the key's type and the key"),
        ],
    )
    def test_a_key_that_is_pasted_in_another_form_says_what_to_put_there(
        self, d: OpenSsh, mode, monkeypatch, line, problem
    ):
        kind, key = d.host_key.split()[:2]
        self.connect(monkeypatch, d, host_key=line.format(kind=kind, key=key))
        with pytest.raises(AirflowFailException, match=f"host_key in the Extra .*{problem}.*'ssh-ed25519 AAAA…'"):
            run_sensor(sensor(mode, soft_fail=True))

    def test_a_key_with_a_comment_is_taken(self, d: OpenSsh, mode, monkeypatch):
        self.connect(monkeypatch, d, host_key=" ".join(d.host_key.split()[:2]) + " the server's\n")
        d.put(FOLDER + "a.json")
        assert run_sensor(sensor(mode)).result["object_count"] == 1

    def test_who_asks_for_no_check_gets_none(self, d: OpenSsh, mode, monkeypatch, nobody_known):
        self.connect(monkeypatch, d, host_key=None, no_host_key_check="true")
        d.put(FOLDER + "a.json")
        assert run_sensor(sensor(mode)).result["object_count"] == 1


@pytest.mark.parametrize("mode", MODES)
class TestWhoMayNot:
    def test_a_key_that_was_never_let_in_fails_for_good(self, d: OpenSsh, mode, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", d.connection(key="stranger_key"))
        with pytest.raises(AirflowFailException, match=r"PermissionDenied; correct the login, password or key"):
            run_sensor(sensor(mode, soft_fail=True))

    def test_a_key_that_was_let_in_before_is_waited_for(self, d: OpenSsh, mode, later):
        allowed = d.folder / "authorized_keys"
        keys = allowed.read_text()

        def lock_out() -> None:
            allowed.write_text("")
            time.sleep(1)
            allowed.write_text(keys)
            d.put(FOLDER + "a.json")

        later(1.5, lock_out)
        # In reschedule mode by the state store of Airflow 3.3, below which each look is a first one.
        context = context_with_store(sensor(mode))
        assert run_sensor(sensor(mode), context=context).result["object_count"] == 1

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            ({"private_key": "-----BEGIN NONSENSE secret-bytes"}, "KeyImportError; correct its private key"),
            ({"private_key": None, "key_file": "/nowhere/key"}, "FileNotFoundError; correct its private key, key_file"),
            (
                {"private_key": None, "key_file": "/etc/passwd/x"},
                "NotADirectoryError; correct its private key, key_file",
            ),
            ({"no_host_key_check": "true"}, "ValueError; correct the keys, host_key and no_host_key_check"),
        ],
    )
    def test_a_connection_that_cannot_be_used_says_what_to_correct(self, d: OpenSsh, mode, monkeypatch, extra, message):
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", d.connection(**extra))
        with pytest.raises(AirflowFailException, match=message) as caught:
            run_sensor(sensor(mode, soft_fail=True))
        assert "secret-bytes" not in str(caught.value)

    @pytest.mark.parametrize("line_end", ["", " ", "\\n"])
    def test_a_private_key_that_lost_its_line_ends_says_so(self, d: OpenSsh, mode, monkeypatch, line_end):
        extra = json.loads(d.connection())["extra"]
        extra = json.loads(extra) if isinstance(extra, str) else extra
        lines = extra["private_key"].strip().splitlines()
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", d.connection(private_key=line_end.join(lines)))
        with pytest.raises(AirflowFailException, match=r"private_key in the Extra .* has lost its line ends") as caught:
            run_sensor(sensor(mode, soft_fail=True))
        assert lines[1] not in str(caught.value)

    @pytest.mark.parametrize(
        ("missing", "message"),
        [({"host": None}, "names no host"), ({"login": None}, "names no login"), ({"port": 99999}, "correct the port")],
    )
    def test_a_connection_that_is_not_whole_says_so(self, d: OpenSsh, mode, monkeypatch, missing, message):
        connection = {**json.loads(d.connection()), **missing}
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", json.dumps(connection))
        with pytest.raises(AirflowFailException, match=message):
            run_sensor(sensor(mode))

    def test_a_manifest_that_may_not_be_written_fails_for_good(self, d: OpenSsh, mode):
        d.put(FOLDER + "a.json")
        d.deny("write,mkdir")
        with pytest.raises(AirflowFailException, match=r"writing to .*SFTPPermissionDenied; let the account write"):
            run_sensor(sensor(mode, manifest_path="manifests/one.jsonl"))

    def test_a_manifest_goes_into_a_folder_that_is_there_where_none_may_be_made(self, d: OpenSsh, mode):
        d.put(FOLDER + "a.json")
        (d.served / "manifests").mkdir()
        d.deny("mkdir")
        run_sensor(sensor(mode, manifest_path="manifests/one.jsonl"))
        assert (d.served / "manifests/one.jsonl").read_text().count("\n") == 1

    def test_a_manifest_that_the_server_does_not_take_is_retried_and_its_path_not_told(self, d: OpenSsh, mode):
        d.put(FOLDER + "a.json")
        d.put("manifests", b"a file")
        with pytest.raises(HealthExError, match="a retry of the task writes it") as caught:
            run_sensor(sensor(mode, manifest_path="manifests/ext-secret/{externalId}", external_id="ext-secret"))
        assert "ext-secret" not in str(caught.value)
        assert "ext-secret" not in f"{caught.value.__cause__!r} {caught.value.__context__!r}"


@pytest.mark.parametrize("mode", MODES)
class TestServersThatHang:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch) -> None:
        monkeypatch.setattr("airflow_provider_healthex.storage.sftp.REQUEST_LIMIT", 1)
        monkeypatch.setattr("airflow_provider_healthex.storage.sftp.CLOSE_LIMIT", 0.5)

    @pytest.fixture
    def silent(self) -> Iterator[int]:
        """A port that is connected to and says nothing."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield listener.getsockname()[1]

    def test_a_server_that_says_nothing_is_waited_for_until_the_deadline(
        self, d: OpenSsh, silent, mode, monkeypatch, airflow_database
    ):
        connection = {**json.loads(d.connection()), "port": silent}
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", json.dumps(connection))
        with pytest.raises(AirflowSensorTimeout, match=r"did not answer the \w+ \(TimeoutError\)"):
            run_sensor(sensor(mode, timeout=3))

    def test_a_listing_that_never_goes_on_ends_with_the_deadline(self, mode, monkeypatch, airflow_database):
        """Giving up makes asyncssh ask the server to close the folder, which it doesn't either."""
        with OddSftp(stalls=True) as server:
            monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection())
            began = time.monotonic()
            with pytest.raises(AirflowSensorTimeout, match=r"did not answer the \w+ \(TimeoutError\)"):
                run_sensor(sensor(mode, path="d/", timeout=1))
            assert time.monotonic() - began < 15

    def test_a_manifest_that_is_never_written_is_left_to_a_retry(self, mode, monkeypatch):
        async def hang(*_: object) -> None:
            await asyncio.sleep(3600)

        with OddSftp(scandir=holding("a.json", **fresh_file()), open=hang) as server:
            monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection())
            with pytest.raises(HealthExError, match=r"TimeoutError.*a retry of the task writes it"):
                run_sensor(sensor(mode, path="d/", manifest_path="m/one.jsonl"))

    def test_many_slow_folders_do_not_outlast_the_deadline_by_much(self, mode, monkeypatch, airflow_database):
        monkeypatch.setattr("airflow_provider_healthex.storage.sftp.POKE_LIMIT", 1)

        async def slow_and_endless(_: object, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
            await asyncio.sleep(0.3)
            yield asyncssh.SFTPName(b"deeper", "", asyncssh.SFTPAttrs(permissions=0o40755, size=0, mtime=0, atime=0))

        with OddSftp(scandir=slow_and_endless) as server:
            monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection())
            began = time.monotonic()
            with pytest.raises(AirflowSensorTimeout, match=r"did not answer the \w+ \(TimeoutError\)"):
                run_sensor(sensor(mode, path="d/", timeout=1))
            assert time.monotonic() - began < 15

    def test_a_server_that_stops_in_the_middle_of_the_wait_is_waited_for(self, d: OpenSsh, mode, later):
        assert d.process is not None
        server = psutil.Process(d.process.pid)

        def hang() -> None:
            for each in (*server.children(recursive=True), server):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGSTOP)
            time.sleep(4)
            d.put(FOLDER + "a.json")
            for each in (server, *server.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGCONT)

        later(1, hang)
        assert run_sensor(sensor(mode)).result["object_count"] == 1


class TestServersThatTellLess:
    """By OpenSSH's ways alone one would not know what SFTP leaves open."""

    FOLDER_STAT = asyncssh.SFTPAttrs(permissions=0o40755, size=0, atime=0, mtime=0)

    def look(self, monkeypatch, **methods):
        with OddSftp(**methods) as server:
            monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection())
            return run_sensor(sensor(path="d/", timeout=1)).result["keys"]

    @pytest.mark.parametrize("told", [{}, {"permissions": 0o100644, "size": 2}])
    @pytest.mark.parametrize("longname", ["", "11-22-26  12:00PM   2 a.json"])
    def test_what_a_listing_leaves_out_is_asked_for(self, monkeypatch, told, longname):
        def lstat(_: object, path: bytes) -> asyncssh.SFTPAttrs:
            return asyncssh.SFTPAttrs(**fresh_file()) if path.endswith(b"a.json") else self.FOLDER_STAT

        listing = holding("a.json", longname, **told)
        assert self.look(monkeypatch, scandir=listing, lstat=lstat, stat=lstat) == ["d/a.json"]

    @pytest.mark.parametrize("longname", ["lrwxrwxrwx link", ""])
    def test_a_link_that_is_listed_as_a_folder_is_not_followed(self, monkeypatch, longname, airflow_database):
        async def listing(_: object, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
            if path.rstrip(b"/").endswith(b"link"):
                yield asyncssh.SFTPName(b"others.json", "-rw", asyncssh.SFTPAttrs(permissions=0o100644, size=2))
            else:
                yield asyncssh.SFTPName(b"link", longname, self.FOLDER_STAT)

        def lstat(_: object, path: bytes) -> asyncssh.SFTPAttrs:
            is_link = path.endswith(b"link") and not longname
            return asyncssh.SFTPAttrs(permissions=0o120777, size=0, atime=0, mtime=0) if is_link else self.FOLDER_STAT

        with pytest.raises(AirflowSensorTimeout, match="no objects under d/"):
            self.look(monkeypatch, scandir=listing, lstat=lstat)


async def refuse_to_list(_: object, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
    raise asyncssh.SFTPPermissionDenied(f"{path.decode()}: permission denied")
    yield


def refuse_to_open(_: object, path: bytes, *__: object) -> None:
    raise asyncssh.SFTPPermissionDenied(f"{path.decode()}: permission denied")


@pytest.mark.parametrize(
    ("refusal", "arguments"),
    [
        ({"scandir": refuse_to_list}, {"path": "d/{externalId}/"}),
        (
            {"scandir": holding("a.json", **fresh_file()), "open": refuse_to_open},
            {"path": "d/", "manifest_path": "m/{externalId}", "clock_skew": 3600},
        ),
    ],
)
def test_what_a_server_says_is_in_no_error(monkeypatch, refusal, arguments):
    """It quotes paths, which name patients, and Airflow logs what caused an error, too."""
    with OddSftp(**refusal) as server:
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection())
        with pytest.raises(AirflowFailException, match="SFTPPermissionDenied") as caught:
            run_sensor(sensor(external_id="ext-" + "secret", **arguments))
    told = "".join(traceback.format_exception(caught.value))
    cause: BaseException | None = caught.value
    while cause is not None:
        told, cause = f"{told} {cause!r} {cause.__context__!r}", cause.__cause__
    assert "ext-secret" not in told


async def a_name_of_another_folder(_: object, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
    yield asyncssh.SFTPName(b"../other/a.json", "-rw", asyncssh.SFTPAttrs(**fresh_file()))


def test_a_name_that_leads_out_of_its_folder_is_passed_over(monkeypatch, airflow_database):
    with OddSftp(scandir=a_name_of_another_folder) as server:
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection())
        with pytest.raises(AirflowSensorTimeout, match="no objects under d/"):
            run_sensor(sensor(path="d/", timeout=0.5))


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_that_cannot_be_read_is_a_typed_error(monkeypatch, mode):
    with OddSftp(realpath=lambda self, path: b"/\xff\xfe") as server:
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection())
        with pytest.raises(AirflowFailException, match="SFTPBadMessage"):
            run_sensor(sensor(mode, soft_fail=True))


@pytest.mark.parametrize("code", [asyncssh.DISC_TOO_MANY_CONNECTIONS, asyncssh.DISC_BY_APPLICATION, 7])
def test_a_server_that_is_busy_or_about_to_end_is_waited_for(monkeypatch, code, airflow_database):
    with OddSftp(turns_away=code) as server:
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection())
        with pytest.raises(AirflowSensorTimeout, match="did not answer the worker"):
            run_sensor(sensor(timeout=0.5))


@pytest.mark.parametrize("mode", MODES)
def test_an_account_without_sftp_fails_for_good(monkeypatch, mode):
    with OddSftp(serves=False) as server:
        monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", server.connection())
        with pytest.raises(AirflowFailException, match="let the account use SFTP"):
            run_sensor(sensor(mode, soft_fail=True))


@pytest.mark.parametrize("mode", MODES)
def test_names_that_are_no_text_are_files_like_others(d: OpenSsh, mode):
    d.put(FOLDER + "a.json")
    folder = os.fsencode(d.served / FOLDER)
    with open(folder + b"/r\xe9sum\xe9.json", "wb") as file:
        file.write(b"{}")
    os.mkdir(folder + b"/\xe9")
    assert run_sensor(sensor(mode)).result["keys"] == [FOLDER + "a.json", FOLDER + r"r\xe9sum\xe9.json"]


class TestTheWorkersLastLook:
    """The triggerer decides; the worker, which collects, must see the same."""

    @pytest.fixture
    def after_the_trigger(self, monkeypatch):
        """Do something after the triggerer's event, before the task is back on a worker."""

        def once(action) -> None:
            from helpers import support

            real, done = support.run_trigger, []

            def run(trigger):
                event = real(trigger)
                if not done:
                    done.append(action())
                return event

            monkeypatch.setattr(support, "run_trigger", run)

        return once

    def test_a_file_that_has_begun_to_come_since_is_waited_for(self, d: OpenSsh, later, after_the_trigger):
        later(1, lambda: d.put(FOLDER + "a.json"))

        def begin() -> None:
            d.put(FOLDER + "b.json", b"half")
            later(1, lambda: d.put(FOLDER + "b.json", b"half and half"))

        after_the_trigger(begin)
        run = run_sensor(sensor("deferred", quiet_period=2))
        assert run.result["total_bytes"] == len("{}half and half")
        assert run.deferrals == 2

    def test_an_account_that_is_locked_out_then_is_waited_for(self, d: OpenSsh, later, after_the_trigger):
        later(1, lambda: d.put(FOLDER + "a.json"))
        allowed = d.folder / "authorized_keys"
        keys = allowed.read_text()

        after_the_trigger(lambda: allowed.write_text(""))
        run = run_sensor(sensor("deferred"), before_trigger=lambda: allowed.write_text(keys))
        assert (run.result["object_count"], run.deferrals) == (1, 2)

    def test_a_server_that_is_away_then_keeps_what_the_first_look_showed(self, d: OpenSsh, later, after_the_trigger):
        d.put(FOLDER + "a.json", b"old", modified=time.time() - 10 * HOUR)
        later(1, lambda: d.put(FOLDER + "a.json", b"refreshed", modified=time.time() - 5 * HOUR))

        def outage() -> None:
            d.stop()
            later(1, d.start)

        after_the_trigger(outage)
        run = run_sensor(sensor("deferred"))
        assert run.result["total_bytes"] == len("refreshed")
        assert run.deferrals == 2


def test_airflow_leaves_the_triggerer_time_for_a_last_look_at_a_server_that_hangs(d: OpenSsh):
    with pytest.raises(TaskDeferred) as caught:
        sensor("deferred", timeout=100).execute(context_of(sensor()))
    assert caught.value.timeout > timedelta(seconds=100 + POKE_LIMIT + REQUEST_LIMIT)


@pytest.mark.parametrize("argument", [{"path": "d/{healthexPatientId}.tmp"}, {"marker": "done.part"}])
def test_a_name_of_half_written_files_is_refused(d: OpenSsh, argument):
    with pytest.raises(HealthExConfigurationError, match="half-written"):
        sensor(**argument)


def test_the_ssh_library_does_not_fill_the_log(d: OpenSsh, task_log):
    d.put(FOLDER + "a.json")
    run_sensor(sensor())
    assert "asyncssh" not in task_log()


def test_without_the_extra_the_import_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['asyncssh'] = None; import airflow_provider_healthex.sensors.sftp"
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "pip install 'airflow-provider-healthex[sftp]'" in done.stderr


def test_openlineage_gets_the_server_as_the_sftp_provider_names_it(d: OpenSsh):
    pytest.importorskip("airflow.providers.openlineage")
    d.put(FOLDER + "bundle.json")
    waiting = sensor()
    waiting.execute(context_of(waiting))
    (data_set,) = waiting.get_openlineage_facets_on_complete(None).outputs
    assert data_set.namespace.startswith("file://127.0.0.1:")
    assert data_set.name == f"{d.served}/d/"
    assert data_set.outputFacets["outputStatistics"].fileCount == 1
