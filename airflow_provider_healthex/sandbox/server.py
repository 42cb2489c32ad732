"""The running sandbox: the API, an S3 or SFTP server, the deliveries between them and a mailbox, as one object."""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from airflow_provider_healthex.sandbox import cohort as cohorts
from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sandbox.api import create_app
from airflow_provider_healthex.sandbox.deliveries import Deliveries, DeliveryPath, Scheduler, StoredFile
from airflow_provider_healthex.sandbox.faults import Faults
from airflow_provider_healthex.sandbox.layouts import LAYOUTS
from airflow_provider_healthex.sandbox.loop import LoopThread
from airflow_provider_healthex.sandbox.mail import Mail, Mailbox
from airflow_provider_healthex.sandbox.patients import Scenario
from airflow_provider_healthex.sandbox.s3 import CREDENTIALS, S3Destination, s3_client
from airflow_provider_healthex.sandbox.service import LIFETIME, RateLimit, Service, Tokens
from airflow_provider_healthex.sandbox.state import Listener, Patient, State, UpdateRequest
from airflow_provider_healthex.sandbox.wsgi import WsgiServer

if TYPE_CHECKING:
    # Asyncssh comes with the extra `sftp`: only delivery by SFTP needs it.
    from airflow_provider_healthex.sandbox.sftp import SftpDestination, SftpServer

T = TypeVar("T")


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
        ``{externalId}``; a folder ends in ``/``. By default the layout's.
    :param layout: how deliveries are laid out, one of :data:`~.layouts.LAYOUTS`.
    :param bucket: by default one that no other sandbox of this process uses.
    :param sftp_server: another SFTP server to deliver to (:class:`~.sftp.SftpServer`), in place of the sandbox's own.
    :param cohort: how many patients there are besides the named ones: ``patient-00001`` and on, with the
        outcomes of :data:`~.cohort.OUTCOMES`. 10,000 take 2 s more to start, and 80 MB.
    :param seed: of the cohort's outcomes, the ends of its consents, and the ``spread``.
    :param spread: seconds after the delay within which deliveries come, each at a moment of its own.
    :param latency: seconds that every request takes.
    :param rate_limit: requests a second, on average; above it comes 429 with ``Retry-After``. One second's requests
        are always possible at once. By default there is no limit.
    :param earlier_deliveries: whether patients have a delivery from before the start, 30 days old; by SFTP 1,000
        take 10 s.
    :param on_event: called as ``on_event(event, details)``, from the thread it happens in, with ``requested``
        (patient_id, project_id, at), ``answered`` (patient_id, status, message, reason), ``delivered``
        (patient_id, key, size, version, stale, at) and ``acted`` (patient_id).
    """

    api_key = "sandbox-api-key"
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
        path: str | None = None,
        layout: str = "overwritten",
        bucket: str | None = None,
        sftp_server: SftpServer | None = None,
        cohort: int = 0,
        seed: int = 0,
        spread: float = 0.0,
        latency: float = 0.0,
        rate_limit: float | None = None,
        earlier_deliveries: bool = True,
        on_event: Listener | None = None,
    ) -> None:
        if delivery == "s3":
            _refuse(delivery, sftp_port=sftp_port, sftp_server=sftp_server)
        elif delivery == "sftp":
            _refuse(delivery, s3_port=s3_port, bucket=bucket)
        else:
            raise ValueError(f"delivery must be 's3' or 'sftp' (got {delivery!r})")
        self.delivery = delivery
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)} (got {layout!r})")
        self._layout = LAYOUTS[layout]
        self.path = self._layout.path if path is None else path
        self.faults = Faults()
        #: A new one for each sandbox, as other users of the machine reach the API.
        self.api_secret = secrets.token_urlsafe(24)
        self._delivery_path = DeliveryPath(
            self.path, self.org_id, self.project_id, begins_names=not self._layout.path.endswith("/")
        )
        self._port, self._s3_port, self._sftp_port, self._smtp_port = port, s3_port, sftp_port, smtp_port
        self._bucket, self._sftp_server = bucket, sftp_server
        self._delay, self._spread, self._seed = delay, spread, seed
        self._latency = latency
        self._rate_limit = RateLimit(rate_limit) if rate_limit is not None else None
        self._cohort = cohorts.cohort_scenarios(cohort, seed)
        self._state = State(on_event, self._cohort, earlier_deliveries)
        self._tokens = Tokens(self.org_id)
        self._loop: LoopThread | None = None
        self._s3: S3Destination | None = None
        self._sftp: SftpDestination | None = None
        self._deliveries: Deliveries | None = None
        self._mailbox: Mailbox | None = None
        self._api: WsgiServer | None = None

    # --- running

    def start(self) -> Sandbox:
        """Listen, and put the earlier deliveries."""
        if self._loop:
            raise RuntimeError("The sandbox is running already.")
        self._state.reset()
        self._loop = loop = LoopThread()
        try:
            if self.delivery == "s3":
                self._s3 = S3Destination(self._s3_port, self._bucket)
            else:
                from airflow_provider_healthex.sandbox.sftp import SftpDestination

                self._sftp = SftpDestination(loop, self._sftp_server, self._sftp_port)
            self._destination.prepare()
            self._deliveries = Deliveries(
                Scheduler(loop), self._destination, self._delivery_path, self._state,
                delay=self._delay, spread=self._spread, seed=self._seed, layout=self._layout,
            )  # fmt: skip
            self._deliveries.put_earlier()
            self._mailbox = Mailbox(loop, self._smtp_port, self.faults)
            service = Service(
                state=self._state,
                faults=self.faults,
                tokens=self._tokens,
                deliveries=self._deliveries,
                mailbox=self._mailbox,
                latency=self._latency,
                rate_limit=self._rate_limit,
                credentials=(self.api_key, self.api_secret),
                reset=self.reset,
            )
            self._api = WsgiServer(create_app(service), self._port, "healthex-api")
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
            self._deliveries.scheduler.clear()
        if destination := self._s3 or self._sftp:
            destination.close()
        if self._loop:
            self._loop.stop()
        self._api = self._mailbox = self._deliveries = self._s3 = self._sftp = self._loop = None

    def reset(self) -> None:
        """
        Start over: forget all requests, faults and mails, delete what was delivered, put the earlier deliveries again.

        On another SFTP server, only what the sandbox has put there is deleted.
        """
        deliveries = _started(self._deliveries)
        deliveries.scheduler.clear()
        self.faults.clear()
        _started(self._mailbox).clear()
        self._state.reset()
        self._destination.clear()
        self._destination.prepare()
        deliveries.put_earlier()

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # --- addresses and credentials

    @property
    def api_url(self) -> str:
        """The API's base URL."""
        return _started(self._api).url

    @property
    def s3_url(self) -> str:
        """The S3 server's URL."""
        self._check_delivery("s3")
        return _started(self._s3).url

    @property
    def bucket(self) -> str:
        """The bucket that deliveries go to."""
        self._check_delivery("s3")
        return _started(self._s3).bucket

    def s3_client(self) -> Any:
        """Return a boto3 client for the S3 server."""
        return s3_client(self.s3_url, CREDENTIALS)

    @property
    def sftp_server(self) -> SftpServer:
        """The SFTP server that deliveries go to, with the account and the host key."""
        self._check_delivery("sftp")
        return _started(self._sftp).server

    def token(self, *, expires_in: float = LIFETIME, **claims: Any) -> str:
        """Return a JWT that the API accepts, or with a negative ``expires_in`` one that has expired."""
        return self._tokens.sign(expires_in=expires_in, **claims)

    def connections(self) -> dict[str, dict[str, Any]]:
        """Return Airflow's default connections: to the API, to the deliveries' storage, and to the mailbox."""
        api = {
            "conn_type": "healthex",
            "host": self.api_url,
            "login": self.api_key,
            "password": self.api_secret,
            "extra": {"project_id": self.project_id},
        }
        storage = "aws_default" if self.delivery == "s3" else "sftp_default"
        return {
            "healthex_default": api,
            storage: self._destination.airflow_connection(),
            "smtp_default": _started(self._mailbox).airflow_connection(),
        }

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

    # --- patients, requests and deliveries

    @property
    def cohort(self) -> list[str]:
        """The ids of the cohort's patients, in their order."""
        return [each.patient_id for each in self._cohort]

    def scenario(self, patient_id: str) -> Scenario:
        """Return the outcome of a request for a patient."""
        return self._patient(patient_id).scenario

    def describe_patients(self) -> str:
        """Return the patients with the outcome of each, as text; a cohort in groups."""
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
        """Return how many requests arrived at one of :data:`~.faults.ENDPOINTS`."""
        return self._state.calls[endpoint]

    @property
    def mails(self) -> list[Mail]:
        """The received mails, the earliest first: ``recipient``, ``subject`` and ``text`` of each."""
        return _started(self._mailbox).mails()

    def prefix(self, patient_id: str) -> str:
        """Return the folder (or key) of a patient's deliveries."""
        return self._delivery_path.prefix(self._patient(patient_id))

    def deliver(self, patient_id: str) -> list[str]:
        """Deliver for a patient now, without a request, and return the keys."""
        return _started(self._deliveries).deliver(self._patient(patient_id))

    def act(self, patient_id: str) -> None:
        """Let a patient go through the link again: data comes after the delay, without a request."""
        _started(self._deliveries).act(self._patient(patient_id))

    def wait_until_delivered(self, timeout: float = 30.0) -> None:
        """Wait until no delivery is pending; ``TimeoutError`` if one is after ``timeout`` s."""
        try:
            _started(self._deliveries).scheduler.wait_until_idle(timeout)
        except TimeoutError:
            raise TimeoutError(f"Deliveries are still pending after {timeout:g} s.") from None

    def files(self, patient_id: str) -> list[StoredFile]:
        """Return a patient's delivered files, in the order of the paths."""
        return self._destination.files(self.prefix(patient_id))

    # --- inside

    @property
    def _destination(self) -> S3Destination | SftpDestination:
        return _started(self._s3) if self.delivery == "s3" else _started(self._sftp)

    def _patient(self, patient_id: str) -> Patient:
        try:
            return self._state.patients[patient_id]
        except KeyError:
            raise LookupError(
                f"Patient {patient_id!r} is not in the sandbox: `healthex-sandbox patients` lists its patients."
            ) from None

    def _check_delivery(self, delivery: str) -> None:
        if self.delivery != delivery:
            raise RuntimeError(f"This sandbox delivers with delivery={self.delivery!r}; this is for {delivery!r}.")


def _started(part: T | None) -> T:
    if part is None:
        raise RuntimeError("The sandbox is not running: use it in a `with` statement, or call start().")
    return part


def _refuse(delivery: str, **arguments: object) -> None:
    if unused := [name for name, value in arguments.items() if value]:
        raise ValueError(f"{' and '.join(unused)} must be left out with delivery={delivery!r}")
