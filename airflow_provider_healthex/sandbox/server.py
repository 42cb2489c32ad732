"""The running sandbox: the API, an S3 or SFTP server, the deliveries between them and a mailbox, as one object."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections import Counter
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_healthex.sandbox import cohort as cohorts
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sandbox.api import create_app
from airflow_provider_healthex.sandbox.deliveries import DEFAULT_PATH, Deliveries, DeliveryPath, Destination, StoredFile
from airflow_provider_healthex.sandbox.faults import Faults
from airflow_provider_healthex.sandbox.mail import Mail, Mailbox
from airflow_provider_healthex.sandbox.pace import Pace, RateLimit
from airflow_provider_healthex.sandbox.patients import Scenario
from airflow_provider_healthex.sandbox.s3 import REGION, OwnDestination, OwnS3, S3Destination, s3_client
from airflow_provider_healthex.sandbox.service import Service
from airflow_provider_healthex.sandbox.state import Listener, Patient, State, UpdateRequest
from airflow_provider_healthex.sandbox.tokens import Tokens
from airflow_provider_healthex.sandbox.wsgi import WsgiServer

if TYPE_CHECKING:
    from flask import Flask

    # Asyncssh comes with the extra `sftp`: only who delivers by SFTP needs it.
    from airflow_provider_healthex.sandbox.sftp import SftpDestination, SftpServer

DEFAULT_BUCKET = "healthex-deliveries"

#: How old the earlier deliveries are where the destination sets times, in days.
EARLIER = 30

#: How long another S3 server's earlier deliveries are left to age, so that any request is later,
#: even with times in whole seconds and the sensor's 2 s of clock skew.
SETTLING = 4.0  # seconds

_NOT_RUNNING = "The sandbox is not running: use it in a `with` statement, or call start()."


class Sandbox:
    """
    A HealthEx-like API that delivers to S3 or by SFTP, on this machine. A context manager::

        with Sandbox(delay=1) as sandbox:
            os.environ.update(sandbox.airflow_environment())
            ...
            assert sandbox.asked("patient-in-progress") == 1

    :param port: of the API; 0 for a free one.
    :param delivery: ``s3``, or ``sftp``, which needs the extra of that name; only that server is started.
    :param s3_port: of the S3 server; 0 for a free one.
    :param sftp_port: of the SFTP server; 0 for a free one.
    :param smtp_port: of the mailbox, an SMTP server that delivers nothing; 0 for a free one.
    :param delay: seconds from a request to its delivery.
    :param path: where deliveries go, with ``{orgId}``, ``{projectId}``, ``{healthexPatientId}``,
        ``{externalId}``; a folder ends in ``/``.
    :param bucket: made where it is missing. By default one that no other sandbox of this process uses.
    :param bind: the address that the servers listen on. Leave it: nothing here is made for a network.
    :param s3_endpoint: another S3 server to deliver to, in place of the sandbox's own.
    :param s3_credentials: access key and secret for that server; by default boto3 looks for them.
    :param sftp_server: another SFTP server to deliver to (:class:`~.sftp.SftpServer`), in place of the sandbox's own.
    :param cohort: how many patients there are besides the named ones: ``patient-00001`` and on, with the
        outcomes of :data:`~.cohort.OUTCOMES`. 10,000 take 2 s more to start, and 80 MB.
    :param seed: decides who of the cohort has which outcome, when whose consent ends, and the ``spread``.
    :param spread: seconds after the delay within which deliveries come, each at a moment of its own.
    :param latency: seconds that every call takes.
    :param rate_limit: calls a second, on average; above it comes 429 with ``Retry-After``. Not in the first
        second, for which the calls of one are in hand. By default there is no limit.
    :param earlier_deliveries: whether anything was delivered before the start. With ``s3_endpoint`` each
        takes a request; by SFTP 1,000 take 10 s.
    :param age_old_deliveries: make the deliveries that are there from the start 30 days old. No S3 API
        can, so with ``s3_endpoint`` start() and reset() wait 4 s instead: older than any request.
    :param on_event: called as ``on_event(event, details)``, from the thread it happens in, with ``asked``
        (patient_id, project_id, at), ``answered`` (patient_id, status, message, reason), ``delivered``
        (patient_id, key, size, version, stale, at) and ``acted`` (patient_id).
    """

    api_key = "sandbox-api-key"
    api_secret = "sandbox-api-secret"
    org_id = patients.ORG_ID
    project_id = patients.PROJECT_ID
    #: The module with the patients' ids.
    patients = patients

    def __init__(
        self,
        *,
        port: int = 0,
        delivery: Literal["s3", "sftp"] = "s3",
        s3_port: int = 0,
        sftp_port: int = 0,
        smtp_port: int = 0,
        delay: float = 3.0,
        path: str = DEFAULT_PATH,
        bucket: str | None = None,
        bind: str = "127.0.0.1",
        s3_endpoint: str | None = None,
        s3_credentials: tuple[str, str] | None = None,
        sftp_server: SftpServer | None = None,
        cohort: int = 0,
        seed: int = 0,
        spread: float = 0.0,
        latency: float = 0.0,
        rate_limit: float | None = None,
        earlier_deliveries: bool = True,
        age_old_deliveries: bool = True,
        on_event: Listener | None = None,
    ) -> None:
        if delivery == "s3":
            _refuse(delivery, sftp_port=sftp_port, sftp_server=sftp_server)
        elif delivery == "sftp":
            _refuse(delivery, s3_port=s3_port, bucket=bucket, s3_endpoint=s3_endpoint, s3_credentials=s3_credentials)
        else:
            raise ValueError(f"delivery is {delivery!r}: use 's3' or 'sftp'.")
        self.delivery = delivery
        self.path = path
        self.faults = Faults()
        self._delivery_path = DeliveryPath(path, self.org_id, self.project_id)
        self._port, self._s3_port, self._bind, self._delay = port, s3_port, bind, delay
        self._smtp_port = smtp_port
        self._bucket = bucket
        self._s3_endpoint = s3_endpoint
        self._sftp_port, self._sftp_server = sftp_port, sftp_server
        self._credentials = s3_credentials if s3_endpoint else ("sandbox-s3-key", "sandbox-s3-secret")
        self._age_old_deliveries = age_old_deliveries
        self._seed, self._spread = seed, spread
        self._pace = Pace(latency, RateLimit(rate_limit) if rate_limit is not None else None)
        self._cohort = cohorts.members(cohort, seed)
        self._state = State(on_event, self._cohort, earlier_deliveries)
        self._tokens = Tokens(self.org_id)
        self._own_s3: OwnS3 | None = None
        self._sftp: SftpDestination | None = None
        self._destination: Destination
        self._deliveries: Deliveries | None = None
        self._api: WsgiServer | None = None
        self._mailbox: Mailbox | None = None

    # --- running

    def start(self) -> Sandbox:
        """Listen, and put the earlier deliveries."""
        if self._api:
            raise RuntimeError("The sandbox is running already.")
        self._state.reset()
        if not ip_address(self._bind).is_loopback:
            warnings.warn(
                f"The HealthEx sandbox listens on {self._bind}: whoever reaches it can use it. "
                "Its secrets are public and its servers are not made for a network. "
                "Keep to 127.0.0.1, and to synthetic data.",
                stacklevel=2,
            )
        try:
            if self.delivery == "s3":
                self._start_s3()
            else:
                self._start_sftp()
            self._deliveries = Deliveries(
                self._destination,
                self._delivery_path,
                self._state,
                delay=self._delay,
                spread=self._spread,
                seed=self._seed,
            )
            self._put_earlier()
            self._mailbox = Mailbox(self._bind, self._smtp_port, self.faults)
            self._api = WsgiServer(self._app(), self._bind, self._port, "healthex-api")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Answer and deliver nothing more. Threads and ports are free on return, and the own server's files gone."""
        self._state.over.set()
        if self._api:
            self._api.stop()
        if self._mailbox:
            self._mailbox.stop()
        if self._deliveries:
            self._deliveries.scheduler.stop()
        if self._own_s3:
            self._own_s3.stop()
            self._own_s3.drop(self.bucket)
        if self._sftp:
            self._sftp.close()
        self._api = self._mailbox = self._deliveries = self._own_s3 = self._sftp = None

    def reset(self) -> None:
        """
        Start over: forget what happened and was mailed, delete what was delivered, put the earlier deliveries again.

        On another S3 or SFTP server, only what the sandbox has put there is deleted.
        """
        self._running.scheduler.clear()
        self.faults.clear()
        self._mails.clear()
        self._state.reset()
        self._destination.take_back()
        self._destination.prepare()
        self._put_earlier()

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # --- addresses and credentials

    @property
    def api_url(self) -> str:
        """The API's base URL."""
        if self._api is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._api.url

    @property
    def s3_url(self) -> str:
        """The S3 server's URL."""
        self._check_delivery("s3")
        if self._own_s3 is None and self._s3_endpoint is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._own_s3.url if self._own_s3 else self._s3_endpoint or ""

    @property
    def bucket(self) -> str:
        """The bucket that deliveries go to."""
        self._check_delivery("s3")
        return self._bucket or DEFAULT_BUCKET

    def s3_client(self) -> Any:
        """Return a boto3 client for the S3 server."""
        return s3_client(self.s3_url, self._credentials)

    @property
    def sftp_server(self) -> SftpServer:
        """The SFTP server that deliveries go to, with the account and the host key."""
        self._check_delivery("sftp")
        if self._sftp is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._sftp.server

    def token(self, *, expires_in: float = 24 * 3600, **claims: Any) -> str:
        """Return a JWT that the API accepts, or with a negative ``expires_in`` one that has expired."""
        return self._tokens.sign(expires_in=expires_in, **claims)

    def healthex_connection(self) -> dict[str, Any]:
        """Return an Airflow connection to the API, by key and secret."""
        extra: dict[str, Any] = {"project_id": self.project_id}
        if not ip_address(self._bind).is_loopback:
            extra["allow_http"] = True
        return {
            "conn_type": "healthex",
            "host": self.api_url,
            "login": self.api_key,
            "password": self.api_secret,
            "extra": extra,
        }

    def aws_connection(self) -> dict[str, Any]:
        """Return an Airflow connection to the S3 server."""
        connection: dict[str, Any] = {
            "conn_type": "aws",
            "extra": {"endpoint_url": self.s3_url, "region_name": REGION},
        }
        if self._credentials:
            connection["login"], connection["password"] = self._credentials
        return connection

    def sftp_connection(self) -> dict[str, Any]:
        """Return an Airflow connection to the SFTP server, with its host key."""
        return self.sftp_server.airflow_connection()

    def smtp_connection(self) -> dict[str, Any]:
        """Return an Airflow connection to the mailbox."""
        return {
            "conn_type": "smtp",
            "host": self._mails.host,
            "port": self._mails.port,
            "extra": {
                "disable_tls": True,
                "disable_ssl": True,
                "from_email": "study@sandbox.example",
                "retry_limit": 0,  # SmtpHook would repeat a refused mail 5 times at once, and no fault be seen
            },
        }

    def connections(self) -> dict[str, dict[str, Any]]:
        """Return Airflow's default connections: to the API, to where deliveries go, and to the mailbox."""
        connections = {"healthex_default": self.healthex_connection()}
        if self.delivery == "s3":
            connections["aws_default"] = self.aws_connection()
        else:
            connections["sftp_default"] = self.sftp_connection()
        connections["smtp_default"] = self.smtp_connection()
        return connections

    def airflow_environment(self) -> dict[str, str]:
        """
        Return the environment variables that make Airflow's default connections.

        Behind a proxy also NO_PROXY, without which Airflow would look for the sandbox there.
        """
        environment = {
            f"AIRFLOW_CONN_{name.upper()}": json.dumps(connection) for name, connection in self.connections().items()
        }
        if any(name.lower() in ("http_proxy", "all_proxy") and value for name, value in os.environ.items()):
            for name in ("NO_PROXY", "no_proxy"):
                hosts = [os.environ.get(name), "127.0.0.1", "localhost"]
                environment[name] = ",".join(host for host in hosts if host)
        return environment

    # --- who there is, what happened, and what shall happen

    @property
    def cohort(self) -> list[str]:
        """The ids of the cohort's patients, in their order."""
        return [each.patient_id for each in self._cohort]

    def scenario(self, patient_id: str) -> Scenario:
        """Return what happens when an update is asked for a patient."""
        return self._patient(patient_id).scenario

    def describe_patients(self) -> str:
        """Return the patients and what each makes happen, as text; a cohort in groups."""
        return patients.table() + (f"\n\n{cohorts.describe(self._cohort)}" if self._cohort else "")

    def asked_by_patient(self) -> Counter[str]:
        """Return how many ``$updateData`` arrived for each patient for whom any did."""
        return Counter(each.patient_id for each in self._state.all_updates())

    def asked(self, patient_id: str) -> int:
        """Return how many ``$updateData`` arrived for a patient, whatever became of them."""
        return len(self.requests(patient_id))

    def accepted(self, patient_id: str) -> int:
        """Return how many retrievals were started for a patient, which HealthEx would bill."""
        return sum(each.accepted for each in self.requests(patient_id))

    def requests(self, patient_id: str) -> list[UpdateRequest]:
        """Return the ``$updateData`` that arrived for a patient, the earliest first."""
        return self._state.updates_of(patient_id)

    def calls(self, endpoint: str) -> int:
        """Return how many requests arrived at one of the API's endpoints, as :data:`~.faults.ENDPOINTS` calls it."""
        return self._state.calls[endpoint]

    @property
    def mails(self) -> list[Mail]:
        """What came to the mailbox, the earliest first: ``recipient``, ``subject`` and ``text`` of each."""
        return self._mails.mails()

    def prefix(self, patient_id: str) -> str:
        """Return the folder (or key) of a patient's deliveries."""
        return self._delivery_path.prefix(self._patient(patient_id))

    def deliver(self, patient_id: str) -> list[str]:
        """Deliver for a patient now, without a request, and return the keys."""
        return self._running.deliver(self._patient(patient_id))

    def act(self, patient_id: str) -> None:
        """Let a patient go through the link again: data comes after the delay, without a request."""
        self._running.act(self._patient(patient_id))

    def wait_until_delivered(self, timeout: float = 30.0) -> None:
        """Wait until nothing is on its way any more; ``TimeoutError`` if something is after ``timeout`` s."""
        if not self._running.scheduler.wait_until_idle(timeout):
            raise TimeoutError(f"Deliveries are still on their way after {timeout:g} s.")

    def files(self, patient_id: str) -> list[StoredFile]:
        """Return what is there of a patient's deliveries, in the order of the paths."""
        assert self._running
        return self._destination.files(self.prefix(patient_id))

    def backdate(self, key: str, days: float) -> None:
        """Make a delivered file older. Another S3 server than the sandbox's own can't."""
        assert self._running
        self._destination.age(key, days)

    # --- inside

    def _app(self) -> Flask:
        return create_app(
            Service(
                state=self._state,
                faults=self.faults,
                tokens=self._tokens,
                deliveries=self._running,
                pace=self._pace,
                mailbox=self._mails,
                reset=self.reset,
                api_key=self.api_key,
                api_secret=self.api_secret,
            )
        )

    @property
    def _running(self) -> Deliveries:
        if self._deliveries is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._deliveries

    @property
    def _mails(self) -> Mailbox:
        if self._mailbox is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._mailbox

    def _patient(self, patient_id: str) -> Patient:
        try:
            return self._state.patients[patient_id]
        except KeyError:
            raise LookupError(
                f"The sandbox has no patient {patient_id!r}: `healthex-sandbox patients` lists them."
            ) from None

    def _check_delivery(self, delivery: str) -> None:
        if self.delivery != delivery:
            raise RuntimeError(f"This sandbox delivers with delivery={self.delivery!r}; this is for {delivery!r}.")

    def _start_s3(self) -> None:
        if self._s3_endpoint is None:
            self._own_s3 = own = OwnS3(self._bind, self._s3_port)
            names = [DEFAULT_BUCKET, *(f"{DEFAULT_BUCKET}-{number}" for number in range(2, 1000))]
            self._bucket = self._bucket or next(name for name in names if not own.has(name))
            self._destination = OwnDestination(own, self.s3_client(), self.bucket)
        else:
            self._destination = S3Destination(self.s3_client(), self.bucket)
        self._destination.prepare()

    def _start_sftp(self) -> None:
        from airflow_provider_healthex.sandbox.sftp import OwnDestination, SftpDestination

        other = self._sftp_server
        self._sftp = SftpDestination(other) if other else OwnDestination(self._bind, self._sftp_port)
        self._destination = self._sftp
        self._destination.prepare()

    def _put_earlier(self) -> None:
        self._running.put_earlier(EARLIER if self._age_old_deliveries else 0)
        if self._age_old_deliveries and not self._destination.sets_times:
            time.sleep(SETTLING)


def _refuse(delivery: str, **arguments: object) -> None:
    if unused := [name for name, value in arguments.items() if value]:
        raise ValueError(f"With delivery={delivery!r} there is no use for {' and '.join(unused)}: leave it out.")
