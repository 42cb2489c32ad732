"""From an Airflow connection to HealthEx's API."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, mask_secret

from airflow_provider_healthex.client import ApiKey, ClientSettings, HealthExClient, StoredToken
from airflow_provider_healthex.client.pacing import Stop
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError
from airflow_provider_healthex.get_provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR

if TYPE_CHECKING:
    from datetime import date

    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_healthex.client import (
        AddPatientsResult,
        ConsentedPatient,
        PatientUpdate,
        PatientUpdateFailure,
    )

DEFAULT_HOST = "https://api.healthex.io"

log = logging.getLogger(__name__)


class HealthExHook(BaseHook):
    """
    Calls the HealthEx API with the token of an Airflow connection.

    The connection's type is ``healthex``. *Host*: the API's base URL, default ``https://api.healthex.io``. *Login*
    empty: *Password* is the token (JWT). *Login* set: it is the API key, *Password* its secret, and the hook mints
    a token, keeps it for the process and replaces it 120 s before it expires. One process runs one task, so that
    each task mints once and the token endpoint is rate limited: with many tasks, let one task serve many patients.
    *Extra*: ``project_id``, ``org_id``, ``connect_timeout`` (10 s), ``read_timeout`` (120 s),
    ``requests_per_second``, ``verify``, ``allow_http``.

    Every call checks a stored token before anything is sent, and repeats by itself what is safe to repeat: what
    never reached HealthEx, 429, and 503 with Retry-After; at most 5 tries and 300 s of waiting.

    :param healthex_conn_id: the Airflow connection.
    :raises HealthExConfigurationError: by every call, where the connection can't be used.
    :raises HealthExTokenError: by every call, where the stored token has expired or minting was refused.
    :raises HealthExConnectionError: by every call, where the request never reached the service.
    :raises HealthExApiError: by every call, for an error the service answered; see its subclasses.
    """

    conn_name_attr = "healthex_conn_id"
    default_conn_name = "healthex_default"
    conn_type = "healthex"
    hook_name = "HealthEx"

    def __init__(self, healthex_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.healthex_conn_id = healthex_conn_id
        self._stop = Stop()  # the client's, which may be made only after it is set

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the labels of the connection form. For Airflow 2.11: later versions read the provider's metadata."""
        return {key.replace("-", "_"): value for key, value in UI_FIELD_BEHAVIOUR.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the Extra's fields of the connection form. For Airflow 2.11, as above."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import StringField

        return {
            name: StringField(field["label"], widget=BS3TextFieldWidget(), description=field["description"])
            for name, field in CONN_FIELDS.items()
        }

    @cached_property
    def _connection(self) -> Connection:
        try:
            return self.get_connection(self.healthex_conn_id)
        except AirflowNotFoundException as error:
            raise HealthExConfigurationError(
                f"There is no Airflow connection {self.healthex_conn_id!r}. Create it with type HealthEx: "
                "the password is the token, or login and password are the API key and its secret."
            ) from error

    @cached_property
    def _client(self) -> HealthExClient:
        return HealthExClient(client_settings(self._connection), on_secret=mask_secret, stop=self._stop)

    def get_conn(self) -> HealthExClient:
        """Return the client of this connection; it holds a connection pool and may be used from several threads."""
        return self._client

    def cancel(self) -> None:
        """End every wait of this hook at once, and send nothing more, even if nothing was yet. For ``on_kill``."""
        self._stop.set()

    def resolve_project_id(self, project_id: str | None = None) -> str:
        """
        Return the project to ask for: the argument, else the connection's.

        :raises HealthExConfigurationError: where neither names one.
        """
        project = project_id or _extra(self._connection).get("project_id")
        if not isinstance(project, str) or not project:
            raise HealthExConfigurationError(
                f"No project: give project_id=…, or set 'project_id' in the Extra of {self.healthex_conn_id!r}."
            )
        return project

    def update_patient_data(
        self, patient_id: str, *, project_id: str | None = None, skip_interactive: bool | None = None
    ) -> PatientUpdate:
        """
        Ask HealthEx to refresh a patient's data. Each accepted call starts, and bills, a retrieval.

        :param patient_id: HealthEx's id of the patient.
        :param project_id: the project, default the connection's.
        :param skip_interactive: ``skipInteractive``: report only consent-related problems as
            ``PATIENT_ACTION_NEEDED`` and skip what needs the patient to log in again (docs.healthex.io). None: not
            sent.
        :raises HealthExUpdateAmbiguousError: where nobody knows whether HealthEx accepted it.
        """
        return self._client.update_patient(
            self.resolve_project_id(project_id), patient_id, skip_interactive=skip_interactive
        )

    def update_patients_data(
        self,
        patient_ids: Iterable[str],
        *,
        project_id: str | None = None,
        skip_interactive: bool | None = None,
        max_concurrency: int = 8,
        checkpoint: Callable[[Sequence[str]], None] | None = None,
    ) -> Iterator[PatientUpdate | PatientUpdateFailure]:
        """
        Ask HealthEx to refresh many patients' data, several at once, and yield what came of each as it comes.

        A patient's failure is yielded with its error, and the others go on. Whoever isn't yielded by the end was not
        asked: after `cancel`, and after what asking on can't mend (401, 403, an expired token, a service that is
        down), nobody more is. Consume it in one thread, to the end; closing it waits for the requests in flight.

        :param patient_ids: HealthEx's ids; who is named twice is asked once.
        :param project_id: the project, default the connection's.
        :param skip_interactive: as `update_patient_data` has it, for all of them.
        :param max_concurrency: requests at once, 1 to 32, over one connection pool and with one token. The
            connection's ``requests_per_second`` is a limit for all together, and a 429 slows all of them down.
        :param checkpoint: is called in the thread that consumes, with all patients whose request may be on its way,
            just before one is added and after one has left. No request is sent before it returns, nor if it raises.
        """
        return self._client.update_patients(
            self.resolve_project_id(project_id),
            patient_ids,
            skip_interactive=skip_interactive,
            max_concurrency=max_concurrency,
            checkpoint=checkpoint,
        )

    def add_patients(
        self,
        patients: Sequence[Mapping[str, Any]],
        *,
        project_id: str | None = None,
        suppress_notifications: bool | None = None,
    ) -> AddPatientsResult:
        """
        Add or update patients of a project; safe to repeat (official guide).

        A hook call and no operator: names and birth dates must not become operator arguments, which Airflow stores
        and shows. Call it inside a ``@task`` that reads them where they live.

        :param patients: HealthEx's fields, e.g. ``firstName``, ``lastName``, ``contactPreference``,
            ``languagePreference``, ``externalId`` (docs.healthex.io).
        :param project_id: the project, default the connection's. It must be active.
        :param suppress_notifications: ``suppressNotifications``; None: not sent.
        :returns: what became of each; patients may fail though the call succeeds.
        """
        return self._client.add_patients(
            self.resolve_project_id(project_id), patients, suppress_notifications=suppress_notifications
        )

    def list_consented_patients(self, *, project_id: str | None = None) -> list[ConsentedPatient]:
        """
        Return the patients whose consent to the project holds.

        :param project_id: the project, default the connection's.
        """
        return self._client.list_consented_patients(self.resolve_project_id(project_id))

    def create_patient_link(self, external_id: str, *, project_id: str | None = None) -> str:
        """
        Return the signed link by which a patient goes through HealthEx's flow; asking again is safe.

        A hook call and no operator: the link lets its holder act as the patient. Send it inside the ``@task`` that
        asked for it; never return, log or store it.

        :param external_id: the id your side gave the patient.
        :param project_id: the project, default the connection's.
        """
        return self._client.create_patient_link(self.resolve_project_id(project_id), external_id)

    def usage_summary(self, start: date | str, end: date | str) -> dict[str, Any]:
        """
        Return HealthEx's account of what was used, for reconciling. Needs an ``ORG_ADMIN`` token.

        :param start: the first day.
        :param end: the last day.
        """
        return self._client.usage_summary(start, end)

    def test_connection(self) -> tuple[bool, str]:
        """Check the token and read ``/FHIR/R4/metadata``; no patient is touched. For the UI's Test button."""
        try:
            self._client.check_token()
            self._client.capability_statement()
            organization = self._client.organization_id
        except HealthExError as error:
            return False, str(error)
        except Exception as error:
            return False, f"{type(error).__name__}: the connection could not be tested"
        return True, "HealthEx answered" + (f" for organization {organization}" if organization else "")


def client_settings(connection: Connection) -> ClientSettings:
    """
    Read a connection.

    :raises HealthExConfigurationError: saying which field can't be used, and how to write it.
    """
    extra = _extra(connection)
    name = connection.conn_id
    url = _base_url(connection, allow_http=_boolean(name, extra, "allow_http", default=False))
    if not connection.password:
        raise HealthExConfigurationError(
            f"The connection {name!r} has no password. Put the token there; or, with an API key as login, its secret."
        )
    return ClientSettings(
        base_url=url,
        credentials=ApiKey(connection.login, connection.password)
        if connection.login
        else StoredToken(connection.password),
        org_id=extra.get("org_id") or None,
        connect_timeout=_positive(name, extra, "connect_timeout", 10),
        read_timeout=_positive(name, extra, "read_timeout", 120),
        requests_per_second=_positive(name, extra, "requests_per_second", None),
        verify=_verify(name, extra, url),
    )


def _extra(connection: Connection) -> dict[str, Any]:
    extra = connection.extra_dejson
    return extra if isinstance(extra, dict) else {}


def _base_url(connection: Connection, *, allow_http: bool) -> str:
    name, host = connection.conn_id, (connection.host or "").strip() or DEFAULT_HOST
    url = host if "://" in host else f"https://{host}"
    try:
        parts = urlsplit(url)
        port = parts.port or connection.port or None
    except ValueError as error:
        raise _bad_host(name, host) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in url:
        raise _bad_host(name, host)
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        if not allow_http:
            raise HealthExConfigurationError(
                f"The host of connection {name!r} is {_shown(host)}: the token would travel unencrypted. Use https://. "
                "For a test system, set 'allow_http': true in Extra."
            )
        log.warning("Connection %r sends its token unencrypted to %s, as allow_http permits", name, parts.hostname)
    address = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{address}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def _bad_host(name: str, host: str) -> HealthExConfigurationError:
    return HealthExConfigurationError(
        f"The host of connection {name!r} is {_shown(host)}, which is no base URL. Write it like {DEFAULT_HOST}."
    )


def _shown(host: str) -> str:
    """Return a host for a message, without the password that somebody may have put before it."""
    _, at, rest = host.rpartition("@")
    return repr(f"***@{rest}" if at else host)


def _is_loopback(hostname: str) -> bool:
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def _positive(name: str, extra: Mapping[str, Any], key: str, default: float | None) -> Any:
    value = extra.get(key)
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0
    if isinstance(value, bool) or not 0 < number < float("inf"):
        raise HealthExConfigurationError(
            f"{key!r} in the Extra of connection {name!r} is {value!r}; give a number above 0."
        )
    return number


def _boolean(name: str, extra: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = extra.get(key)
    if value is None or value == "":
        return default
    word = str(value).lower()
    if word not in ("true", "false"):
        raise HealthExConfigurationError(
            f"{key!r} in the Extra of connection {name!r} is {value!r}; give true or false."
        )
    return word == "true"


def _verify(name: str, extra: Mapping[str, Any], url: str) -> bool | str:
    value = extra.get("verify")
    if isinstance(value, str) and value.lower() not in ("", "true", "false"):
        if not os.path.exists(value):
            raise HealthExConfigurationError(
                f"'verify' in the Extra of connection {name!r} is {value!r}, where there is no file. Give true, or "
                "the path of a CA bundle on the worker."
            )
        return value
    verify = _boolean(name, extra, "verify", default=True)
    if not verify and not _is_loopback(urlsplit(url).hostname or ""):
        raise HealthExConfigurationError(
            f"'verify' in the Extra of connection {name!r} is false, which is accepted for loopback hosts only: "
            "anyone on the way could read the token. Give the path of your CA bundle instead."
        )
    return verify
