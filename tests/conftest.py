"""A private Airflow, and real servers on loopback, for every test."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOME = Path(tempfile.mkdtemp(prefix="healthex-tests-"))

# Airflow reads its configuration when it is first imported.
os.environ.update(
    AIRFLOW_HOME=str(HOME),
    AIRFLOW__CORE__DAGS_FOLDER=str(HOME / "dags"),
    AIRFLOW__CORE__LOAD_EXAMPLES="false",
    AIRFLOW__LOGGING__BASE_LOG_FOLDER=str(HOME / "logs"),
    AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="false",
    AWS_EC2_METADATA_DISABLED="true",
)
# Airflow imports every file below its DAGs folder: the DAGs alone, and not the tests beside them.
(HOME / "dags").mkdir()
for folder in ("example_dags", "tests/dags"):
    (HOME / "dags" / Path(folder).name).symlink_to(ROOT / folder)
for name in list(os.environ):
    if name.startswith(("AIRFLOW_CONN_", "AWS_ACCESS", "AWS_SECRET", "AWS_PROFILE", "AWS_SESSION")):
        del os.environ[name]

import functools  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import uuid  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from datetime import datetime, timedelta, timezone  # noqa: E402
from typing import Any  # noqa: E402

import botocore.loaders  # noqa: E402
import botocore.session  # noqa: E402
import hypothesis  # noqa: E402
import pytest  # noqa: E402
from helpers import openssh, support  # noqa: E402

# Shells let what they start in the background ignore Ctrl-C, and the programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Each AWS client would parse the same megabytes of botocore's data files: half the time of a test with one.
botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)

# The same examples at each run, however busy the machine is.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("tests")

#: The longest tests go first, so that no worker begins with it when the others have ended.
FIRST = ("end_to_end", "sensors", "benchmarks", "example_dags", "docs", "sandbox", "check", "storage")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        return next((turn for turn, folder in enumerate(FIRST) if folder in item.path.parts), len(FIRST))

    items.sort(key=turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run files in parallel, as tests of one share servers; those on a whole Airflow share it."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "end_to_end" if "end_to_end" in file else file

    return Scheduling(config, log)


def pytest_report_header() -> str:
    if openssh.SSHD:
        return f"SFTP: {openssh.SSHD}"
    return "SFTP: no sshd here; asyncssh stands in for it, and what is about sshd's own processes is skipped"


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server on loopback. It accepts any credentials."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> support.Bucket:
    """An empty bucket, and ``aws_default`` to reach it."""
    client = support.s3_client(s3_endpoint)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", support.aws_connection(s3_endpoint))
    return support.Bucket(name, s3_endpoint, client)


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Airflow's metadata database, for what runs whole DAGs."""
    support.migrate()


@pytest.fixture
def task_log(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """
    Everything logged so far: Airflow 3 prints what a task logs, 2.11 hands it to ``logging``.

    Without what dag.test() of Airflow 3.0 alone prints: each value that is to be masked, and with a traceback the local
    variables of each frame.
    """
    caplog.set_level("INFO")
    printed = []

    def read() -> str:
        printed.append(capsys.readouterr().out)
        output = "".join(printed)
        if support.AIRFLOW == (3, 0):  # which prints what it hands to logging, too
            return re.sub(r"^(.*\[debug *\] Sending request .*MaskSecret.*|[│╭╰].*)$", "", output, flags=re.MULTILINE)
        return output + caplog.text

    return read


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a self-signed certificate of 127.0.0.1 and its key."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(scope="session")
def openssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openssh.OpenSsh]:
    if not openssh.HAS_SERVER:
        pytest.skip(openssh.MISSING)
    server = openssh.OpenSsh(tmp_path_factory.mktemp("openssh"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def sftp(openssh_server: openssh.OpenSsh, monkeypatch: pytest.MonkeyPatch) -> openssh.OpenSsh:
    """A running SFTP server that serves nothing yet, and ``sftp_default`` to reach it."""
    openssh_server.clear()
    monkeypatch.setenv("AIRFLOW_CONN_SFTP_DEFAULT", openssh_server.connection())
    return openssh_server
