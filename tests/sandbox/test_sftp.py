"""Delivery by SFTP: to the sandbox's own server, and to a real OpenSSH."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from getpass import getuser
from pathlib import Path

import asyncssh
import paramiko
import psutil
import pytest
from airflow.providers.sftp.hooks.sftp import SFTPHook, SFTPHookAsync
from helpers.openssh import OpenSsh, needs_sshd
from helpers.sandbox import Caller, no_thread_left

from airflow_provider_healthex.sandbox import Sandbox, patients
from airflow_provider_healthex.sandbox import sftp as sftp_module
from airflow_provider_healthex.sandbox.patients import SCENARIOS
from airflow_provider_healthex.sandbox.sftp import USERNAME, SftpServer

IN_PROGRESS = "d/project-demo/patient-in-progress/bundle.json"


def account(server: OpenSsh, *, key: str = "client_key", host_key: str | None = None) -> SftpServer:
    return SftpServer(
        "127.0.0.1",
        server.port,
        getuser(),
        host_key or server.host_key,
        private_key=(server.folder / key).read_text(),
    )


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Sandbox(delivery="sftp", delay=0) as sandbox:
        yield sandbox


@pytest.fixture
def on_openssh(sftp: OpenSsh) -> Iterator[Sandbox]:
    with Sandbox(delivery="sftp", sftp_server=account(sftp), delay=0) as sandbox:
        yield sandbox


@pytest.fixture(params=["own", "on_openssh"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return request.getfixturevalue(request.param)


@pytest.fixture
def hook(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> SFTPHook:
    for name, value in sandbox.airflow_environment().items():
        monkeypatch.setenv(name, value)
    return SFTPHook()


@contextmanager
def logged_in(server: SftpServer) -> Iterator[paramiko.Transport]:
    transport = paramiko.Transport((server.host, server.port))
    try:
        transport.connect(username=server.username, password=server.password)
        yield transport
    finally:
        transport.close()


def names(sandbox: Sandbox, patient_id: str) -> list[str]:
    return [file.path.removeprefix(sandbox.prefix(patient_id)) for file in sandbox.files(patient_id)]


def is_old(moment: datetime) -> bool:
    return moment < datetime.now(timezone.utc) - timedelta(days=29)


def is_free(server: SftpServer) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((server.host, server.port)) != 0


def sessions(server: OpenSsh) -> list[psutil.Process]:
    """Return OpenSSH's processes of the open connections."""
    return psutil.Process(server.process.pid).children(recursive=True)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_the_earlier_deliveries_are_there_and_a_month_old(sandbox):
    for scenario in SCENARIOS.values():
        found = sandbox.files(scenario.patient_id)
        expected = sorted(scenario.file_names) if scenario.delivered_before else []
        assert names(sandbox, scenario.patient_id) == expected
        assert all(is_old(file.modified) for file in found)


def test_an_accepted_update_overwrites_the_earlier_delivery(sandbox):
    second = datetime.now(timezone.utc).replace(microsecond=0)
    (before,) = sandbox.files(patients.IN_PROGRESS)
    Caller(sandbox).update(patients.IN_PROGRESS)
    sandbox.wait_until_delivered()
    (after,) = sandbox.files(patients.IN_PROGRESS)
    assert after.path == before.path == IN_PROGRESS
    assert after.modified >= second
    assert after.size > before.size


def test_what_was_delivered_is_a_bundle(sandbox, hook):
    sandbox.deliver(patients.SEVERAL_FILES)
    with hook.get_managed_conn() as sftp, sftp.open(f"{sandbox.prefix(patients.SEVERAL_FILES)}bundle-1.json") as file:
        assert json.load(file)["resourceType"] == "Bundle"


def test_without_a_folder_in_the_path_there_is_one_file(sftp):
    template = "in/{externalId}.json"
    with Sandbox(delivery="sftp", sftp_server=account(sftp), path=template) as sandbox:
        assert set(sandbox.deliver(patients.SEVERAL_FILES)) == {"in/ext-several-files.json"}
        (file,) = sandbox.files(patients.SEVERAL_FILES)
        assert file.path == "in/ext-several-files.json"
        assert sandbox.files(patients.FIRST_DELIVERY) == []


def test_a_path_may_begin_at_the_root(sftp, tmp_path):
    with Sandbox(delivery="sftp", sftp_server=account(sftp), path=f"{tmp_path}/{{healthexPatientId}}/") as sandbox:
        assert sandbox.deliver(patients.PARTIAL) == [f"{tmp_path}/patient-partial/bundle.json"]
        assert (tmp_path / "patient-partial/bundle.json").exists()


def test_a_file_is_written_beside_the_old_one_and_then_takes_its_place(sftp, caplog):
    sftp.put(IN_PROGRESS, b"old")
    sftp.deny("posix-rename")
    with Sandbox(delivery="sftp", sftp_server=account(sftp), delay=0, earlier_deliveries=False) as sandbox:
        Caller(sandbox).update(patients.IN_PROGRESS)
        sandbox.wait_until_delivered()
    assert "could not deliver" in caplog.text
    assert (sftp.served / IN_PROGRESS).read_bytes() == b"old"
    assert json.loads((sftp.served / f"{IN_PROGRESS}.filepart").read_bytes())["resourceType"] == "Bundle"


@needs_sshd
@pytest.mark.parametrize("goes", [True, False])
def test_a_server_that_goes_or_hangs_costs_one_delivery(on_openssh, sftp, caplog, monkeypatch, goes):
    hanging = sessions(sftp)
    for session in hanging:
        session.suspend()
    with monkeypatch.context() as patched:  # the next delivery has all the time that a busy machine needs
        patched.setattr(sftp_module, "UPLOAD_TIMEOUT", 0.5)
        Caller(on_openssh).update(patients.IN_PROGRESS)
        if goes:
            kill(hanging)
        on_openssh.wait_until_delivered()
        kill(hanging)
    assert caplog.text.count("could not deliver") == 1
    Caller(on_openssh).update(patients.FIRST_DELIVERY)
    on_openssh.wait_until_delivered()
    assert names(on_openssh, patients.FIRST_DELIVERY) == ["bundle.json"]


def test_a_server_that_was_away_is_delivered_to_again(on_openssh, sftp, caplog):
    kill(sessions(sftp))
    sftp.stop()
    Caller(on_openssh).update(patients.IN_PROGRESS)
    on_openssh.wait_until_delivered()
    assert "could not deliver" in caplog.text
    sftp.start()
    Caller(on_openssh).update(patients.FIRST_DELIVERY)
    on_openssh.wait_until_delivered()
    assert names(on_openssh, patients.FIRST_DELIVERY) == ["bundle.json"]


def test_a_reader_may_delete_files_and_folders(sandbox, hook):
    with hook.get_managed_conn() as sftp:
        sftp.remove(IN_PROGRESS)
        sftp.rmdir(os.path.dirname(IN_PROGRESS))
    sandbox.deliver(patients.IN_PROGRESS)
    assert names(sandbox, patients.IN_PROGRESS) == ["bundle.json"]
    sandbox.reset()
    assert len(sandbox.files(patients.IN_PROGRESS)) == 1


def test_a_reset_takes_back_what_it_put_and_nothing_else(on_openssh, sftp):
    sftp.put("d/project-demo/patient-first-delivery/not-ours.json")
    on_openssh.deliver(patients.FIRST_DELIVERY)
    on_openssh.act(patients.CONSENT_NOT_FOUND)
    on_openssh.wait_until_delivered()
    on_openssh.reset()
    assert names(on_openssh, patients.FIRST_DELIVERY) == ["not-ours.json"]
    assert not (sftp.served / "d/project-demo/patient-consent-not-found").exists()
    assert is_old(on_openssh.files(patients.IN_PROGRESS)[0].modified)


def test_a_reset_of_its_own_server_takes_back_everything(own):
    with logged_in(own.sftp_server) as transport:
        sftp = paramiko.SFTPClient.from_transport(transport)
        sftp.open("a-manifest.json", "w").close()
        sftp.mkdir("archive")
        own.reset()
        assert sftp.listdir() == ["d"]
    assert is_old(own.files(patients.IN_PROGRESS)[0].modified)


def test_airflows_hooks_list_it_with_the_connection(hook):
    async def listed() -> list[str]:
        return [str(entry.filename) for entry in await SFTPHookAsync().read_directory(folder)]

    folder = os.path.dirname(IN_PROGRESS)
    assert hook.list_directory(folder) == ["bundle.json"]
    assert "bundle.json" in asyncio.run(listed())


def test_airflows_hooks_refuse_another_host_key(own, sftp, monkeypatch):
    connection = own.connections()["sftp_default"]
    connection["extra"]["host_key"] = sftp.host_key
    monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", json.dumps(connection))
    with pytest.raises(paramiko.BadHostKeyException):
        SFTPHook(conn_retry_attempts=1).list_directory("d")
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        asyncio.run(SFTPHookAsync().read_directory("d"))


def test_it_delivers_to_no_server_but_the_one_with_the_host_key(own, sftp):
    with no_thread_left(), pytest.raises(asyncssh.HostKeyNotVerifiable):
        Sandbox(delivery="sftp", sftp_server=account(sftp, host_key=own.sftp_server.host_key)).start()
    assert list(sftp.served.iterdir()) == []


def test_an_account_that_is_refused_shows_at_the_start(sftp):
    with no_thread_left(), pytest.raises(asyncssh.PermissionDenied):
        Sandbox(delivery="sftp", sftp_server=account(sftp, key="stranger_key")).start()


def test_after_the_end_what_was_put_on_another_server_stays(sftp):
    with Sandbox(delivery="sftp", sftp_server=account(sftp)):
        pass
    assert (sftp.served / IN_PROGRESS).exists()


def test_its_own_server_lets_in_its_own_account_alone(own):
    assert own.sftp_server.username == USERNAME
    for other in ({"password": "sandbox-sftp-password"}, {"password": ""}, {"username": "root"}):
        with pytest.raises(paramiko.AuthenticationException), logged_in(dataclasses.replace(own.sftp_server, **other)):
            pass


def test_its_own_server_has_a_new_password_at_each_start():
    passwords = set()
    sandbox = Sandbox(delivery="sftp", earlier_deliveries=False)
    for _ in range(2):
        with sandbox:
            passwords.add(sandbox.sftp_server.password)
            assert sandbox.connections()["sftp_default"]["password"] == sandbox.sftp_server.password
    assert len(passwords) == 2
    assert min(len(password) for password in passwords) >= 20


@pytest.fixture
def client(own) -> Iterator[paramiko.SFTPClient]:
    """A client of the sandbox's own server, in a folder ``a/b``."""
    with logged_in(own.sftp_server) as transport:
        client = paramiko.SFTPClient.from_transport(transport)
        client.mkdir("a")
        client.mkdir("a/b")
        yield client


@pytest.fixture
def served(own, tmp_path) -> Path:
    """The folder that the sandbox's own server serves."""
    (delivered,) = tmp_path.rglob("d/project-demo")
    return delivered.parent.parent


def test_no_link_can_be_made_on_its_own_server(client, served):
    with pytest.raises(PermissionError):  # inside, until the link is renamed to "/link"
        client.symlink("../..", "a/b/link")
    for target in ("/", "/etc/passwd", "a"):
        with pytest.raises(PermissionError):
            client.symlink(target, "link")
    assert sorted(client.listdir()) == ["a", "d"]
    assert not [path for path in served.rglob("*") if path.is_symlink()]


def test_no_hard_link_can_be_made_on_its_own_server(own):
    async def link() -> None:
        server = own.sftp_server
        async with (
            asyncssh.connect(
                server.host, server.port, username=server.username, password=server.password, known_hosts=None
            ) as connection,
            connection.start_sftp_client() as sftp,
        ):
            await sftp.link(IN_PROGRESS, "other.json")

    with pytest.raises(asyncssh.SFTPPermissionDenied):
        asyncio.run(link())


@pytest.fixture
def outside(served, tmp_path) -> Iterator[Path]:
    """A folder of the same user, to which links lead that the server did not make; nothing changes in it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (served / "link").symlink_to(outside)
    (served / "secret").symlink_to(outside / "secret")
    before = outside.stat().st_mtime_ns, (outside / "secret").stat()
    yield outside
    assert (outside.stat().st_mtime_ns, (outside / "secret").stat()) == before
    assert (outside / "secret").read_text() == "secret"


@pytest.mark.parametrize("path", ["secret", "link/secret", "a/../link/secret", "link", "link/"])
@pytest.mark.parametrize(
    "use",
    [
        lambda client, path: client.open(path, "r"),
        lambda client, path: client.open(path, "w"),
        lambda client, path: client.open(path, "a"),
        lambda client, path: client.stat(path),
        lambda client, path: client.lstat(path),
        lambda client, path: client.listdir(path),
        lambda client, path: client.normalize(path),
        lambda client, path: client.readlink(path),
        lambda client, path: client.remove(path),
        lambda client, path: client.rmdir(path),
        lambda client, path: client.mkdir(path),
        lambda client, path: client.rename(path, "taken-out"),
        lambda client, path: client.posix_rename(path, "taken-out"),
        lambda client, path: client.posix_rename(IN_PROGRESS, path),
        lambda client, path: client.utime(path, (1, 1)),
        lambda client, path: client.chmod(path, 0o777),
        lambda client, path: client.truncate(path, 0),
    ],
)
def test_no_link_is_followed_on_its_own_server(client, outside, use, path):
    with pytest.raises(PermissionError):
        use(client, path)


def test_nothing_new_is_put_behind_a_link_of_its_own_server(client, outside):
    for use in (
        lambda: client.open("link/new", "x"),
        lambda: client.mkdir("link/new"),
        lambda: client.rename("a/b", "link/new"),
        lambda: client.posix_rename(IN_PROGRESS, "link/new"),
    ):
        with pytest.raises(PermissionError):
            use()


def test_a_path_cannot_climb_out_of_its_own_server(client, served):
    with client.open("../../../../climbed", "w") as file:
        file.write("x")
    assert (served / "climbed").exists()
    client.rename("climbed", "/../../moved")
    assert (served / "moved").exists()


def test_the_served_folder_stays_and_what_is_above_stays_closed(own, client, served):
    client.chmod("/", 0o777)
    for path in ("/", "", ".", "a/.."):
        with pytest.raises(OSError):
            client.rmdir(path)
    with pytest.raises(OSError):
        client.rename("/", "/a/root")
    own.reset()
    assert stat.S_IMODE(served.parent.stat().st_mode) == 0o700


def test_its_own_server_serves_its_own_folder_and_nothing_else(own, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("")
    with logged_in(own.sftp_server) as transport:
        sftp = paramiko.SFTPClient.from_transport(transport)
        assert sftp.normalize(".") == "/"
        for path in (str(secret), f"../../../../../..{secret}"):
            with pytest.raises(FileNotFoundError):
                sftp.stat(path)
        with pytest.raises(paramiko.SSHException):
            transport.open_session().exec_command("true")
        with pytest.raises(paramiko.ChannelException):
            transport.open_channel("direct-tcpip", ("127.0.0.1", own.sftp_server.port), ("127.0.0.1", 1))


def test_its_folder_is_for_this_user_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Sandbox(delivery="sftp", earlier_deliveries=False):
        (folder,) = tmp_path.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_stopping_leaves_no_thread_no_port_and_no_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with no_thread_left(), Sandbox(delivery="sftp") as sandbox:
        server = sandbox.sftp_server
        assert not is_free(server)
        with logged_in(server) as transport:  # still connected at the end
            sandbox.stop()
            transport.join(10)
            assert not transport.is_active()
    assert is_free(server)
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        no_thread_left(),
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="Choose another port"),
    ):
        Sandbox(delivery="sftp", sftp_port=taken.getsockname()[1]).start()
    assert list(tmp_path.iterdir()) == []


def test_it_can_be_started_again():
    sandbox = Sandbox(delivery="sftp")
    keys = set()
    for _ in range(2):
        with sandbox:
            keys.add(sandbox.sftp_server.host_key)
            assert names(sandbox, patients.IN_PROGRESS) == ["bundle.json"]
    assert len(keys) == 2


def test_asyncssh_is_quiet_unless_it_warns(own, caplog):
    caplog.set_level("INFO")
    own.deliver(patients.IN_PROGRESS)
    assert "asyncssh" not in {record.name.partition(".")[0] for record in caplog.records}


def test_there_is_one_connection_for_where_it_delivers(own):
    assert sorted(own.connections()) == ["healthex_default", "sftp_default", "smtp_default"]
    assert json.loads(own.airflow_environment()["AIRFLOW_CONN_SFTP_DEFAULT"]) == own.connections()["sftp_default"]


def test_passwords_and_keys_are_not_shown():
    server = SftpServer("h", 22, "u", "ssh-ed25519 AAAA", password="hidden-1", private_key="hidden-2")
    assert "hidden" not in repr(server)


def test_what_is_s3s_is_refused_and_the_other_way_round(own, running):
    for use in (lambda: own.bucket, lambda: own.s3_url, own.s3_client):
        with pytest.raises(RuntimeError, match="delivers with delivery='sftp'"):
            use()
    with pytest.raises(RuntimeError, match="delivers with delivery='s3'"):
        _ = running.sftp_server
    assert set(running.connections()) == {"healthex_default", "aws_default", "smtp_default"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delivery": "sftp", "bucket": "b", "s3_port": 1}, "s3_port and bucket must be left out"),
        ({"delivery": "s3", "sftp_port": 1}, "sftp_port must be left out"),
        ({"delivery": "ftp"}, "must be 's3' or 'sftp'"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sandbox(**arguments)


def test_before_the_start_it_says_so():
    for use in (lambda s: s.sftp_server, lambda s: s.files(patients.PARTIAL)):
        with pytest.raises(RuntimeError, match="not running"):
            use(Sandbox(delivery="sftp"))


def test_without_asyncssh_s3_works_and_sftp_names_the_extra():
    code = (
        "import sys\n"
        "sys.modules['asyncssh'] = None\n"
        "from airflow_provider_healthex.sandbox import Sandbox\n"
        "Sandbox(earlier_deliveries=False).start().stop()\n"
        "Sandbox(delivery='sftp').start()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'airflow-provider-healthex[sandbox,sftp]'" in done.stderr.splitlines()[-1]


def test_s3_imports_no_asyncssh():
    code = (
        "import sys\n"
        "from airflow_provider_healthex.sandbox import Sandbox\n"
        "Sandbox(earlier_deliveries=False).start().stop()\n"
        "assert 'asyncssh' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_s3_shows_its_files_too(running):
    running.reset()
    (file,) = running.files(patients.IN_PROGRESS)
    assert (file.path, is_old(file.modified)) == (IN_PROGRESS, True)
    assert file.size > 0
