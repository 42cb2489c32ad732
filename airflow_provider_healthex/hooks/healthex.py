"""From an Airflow connection to HealthEx's API."""

from __future__ import annotations

import difflib
import ipaddress
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import BaseHook, mask_secret

from airflow_provider_healthex.client import ApiKey, ClientSettings, HealthExClient, StoredToken
from airflow_provider_healthex.client.rate_limit import Stop
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError
from airflow_provider_healthex.get_provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR
from airflow_provider_healthex.hooks.connection import ConnectionNotFound, find_connection

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
    empty: *Password* is the token (JWT). *Login* set: it is the API key, *Password* its secret, and the hook requests
    a token, keeps it for the process and replaces it 120 s before it expires. Each task is a process and requests
    its own token, at an endpoint that is rate limited: with many patients, let one task serve them all.
    *Extra*: ``project_id``, ``org_id``, ``connect_timeout`` (10 s), ``read_timeout`` (120 s),
    ``requests_per_second``, ``verify``, ``allow_http``.

    Every call checks a stored token before anything is sent, and retries by itself what is safe to retry: what
    never reached HealthEx, 429, and 503 with Retry-After; at most 5 tries and 300 s of waiting.

    :param healthex_conn_id: the Airflow connection.
    :raises HealthExConfigurationError: by every call, where the connection can't be used.
    :raises HealthExTokenError: by every call, where the stored token has expired or minting was refused.
    :raises HealthExConnectionError: by every call, where the request never reached the service, or Airflow could not
        look up the connection.
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
        return self._find_connection()

    def _find_connection(self, *, retry: bool = True) -> Connection:
        try:
            return find_connection(self.healthex_conn_id, stop=self._stop, retry=retry)
        except ConnectionNotFound:
            raise HealthExConfigurationError(
                f"There is no Airflow connection {self.healthex_conn_id!r}: create it with type HealthEx. "
                "The password is the token, or login and password are the API key and its secret."
            ) from None

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
        Return the project of a call: the argument, else the connection's.

        :raises HealthExConfigurationError: where neither names one.
        """
        if project_id is not None and not isinstance(project_id, str):
            raise HealthExConfigurationError(
                f"project_id must be text (got {project_id!r}, {_a(project_id)}): put it in quotes. Native rendering "
                "(render_template_as_native_obj) makes numbers of ids: give them without a template."
            )
        project = project_id or _text(self._connection, "project_id")
        if not project:
            raise HealthExConfigurationError(
                f"No project: give project_id=…, or set 'project_id' in the Extra of {self.healthex_conn_id!r}."
            )
        return project

    def update_patient_data(
        self, patient_id: str, *, project_id: str | None = None, skip_interactive: bool | None = None
    ) -> PatientUpdate:
        """
        Request a refresh of a patient's data. Each accepted call starts, and bills, a retrieval.

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
        Request a refresh of many patients' data, several at once, and yield each patient's result as it comes.

        A patient's failure is yielded with its error, and the others go on. Patients that are never yielded were not
        requested: no more are after `cancel`, and after errors that a retry can't help (401, 403, an expired token, a
        service that is down). Consume it in one thread, to the end; closing it waits for the requests in flight.

        :param patient_ids: HealthEx's ids; each is requested once, however often it is named.
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
        """Check the token and read ``/FHIR/R4/metadata``, once; no patient is touched. For *Test* in UI and CLI."""
        try:
            connection = self._find_connection(retry=False)
            settings = client_settings(connection)
            with HealthExClient(settings, on_secret=mask_secret, stop=self._stop, tries=1) as client:
                client.check_token()
                client.capability_statement()
                organization = client.organization_id
        except HealthExError as error:
            return False, self._without_made_up_id(str(error))
        except Exception as error:
            return False, f"The connection could not be tested ({type(error).__name__})"
        message = "HealthEx answered" + (f" for organization {organization}" if organization else "")
        return True, ". ".join((message, *_unknown_keys(connection)))

    def _without_made_up_id(self, text: str) -> str:
        """Leave out the connection's id where the UI's Test button made it up: nobody has typed it."""
        name = self.healthex_conn_id
        if re.fullmatch("[A-Za-z0-9]{8}", name) and f"AIRFLOW_CONN_{name.upper()}" in os.environ:
            return text.replace(f" {name!r}", "")
        return text


def client_settings(connection: Connection) -> ClientSettings:
    """
    Read a connection.

    :raises HealthExConfigurationError: saying which field can't be used, and how to write it.
    """
    extra = _extra(connection)
    name = connection.conn_id
    for unknown in _unknown_keys(connection):
        log.warning("Connection %r: %s", name, unknown)
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
        org_id=_text(connection, "org_id"),
        connect_timeout=_positive(name, extra, "connect_timeout", 10),
        read_timeout=_positive(name, extra, "read_timeout", 120),
        requests_per_second=_positive(name, extra, "requests_per_second", None),
        verify=_verify(name, extra, url),
    )


def _extra(connection: Connection) -> dict[str, Any]:
    extra = connection.extra_dejson
    return extra if isinstance(extra, dict) else {}


def _unknown_keys(connection: Connection) -> list[str]:
    """Return a sentence for each key of the Extra that nothing reads."""
    return [
        f"{key!r} in its Extra is unknown and ignored"
        + "".join(f": did you mean {like!r}?" for like in difflib.get_close_matches(key, CONN_FIELDS, n=1))
        for key in sorted(_extra(connection).keys() - CONN_FIELDS.keys())
    ]


def _text(connection: Connection, key: str) -> str | None:
    value = _extra(connection).get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise HealthExConfigurationError(
            f"{key!r} in the Extra of connection {connection.conn_id!r} must be text (got {value!r}, {_a(value)}): "
            "put it in quotes."
        )
    return value


def _a(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    return f"of type {type(value).__name__}"


def _base_url(connection: Connection, *, allow_http: bool) -> str:
    name, host = connection.conn_id, (connection.host or "").strip() or DEFAULT_HOST
    # A connection's URI keeps its path in the field schema, where other connections have the scheme.
    schema = (connection.schema or "").strip().strip("/")
    scheme, path = (schema, "") if schema in ("http", "https") else ("https", schema)
    url = host if "://" in host else f"{scheme}://{host}"
    try:
        parts = urlsplit(url)
        port = parts.port or connection.port or None
    except ValueError:  # its text may hold a part of a password
        raise _bad_host(name, host) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in url:
        raise _bad_host(name, host)
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        if not allow_http:
            raise HealthExConfigurationError(
                f"The host of connection {name!r} is {_shown(url)}: the token would travel unencrypted. Use https://. "
                "For a test system, set 'allow_http': true in Extra."
            )
        log.warning("Connection %r sends its token unencrypted to %s, as allow_http permits", name, parts.hostname)
    address = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = f"{parts.path.rstrip('/')}{f'/{path}' if path else ''}"
    return f"{parts.scheme}://{address}{f':{port}' if port else ''}{path}"


def _bad_host(name: str, host: str) -> HealthExConfigurationError:
    return HealthExConfigurationError(
        f"The host of connection {name!r} is no base URL (got {_shown(host)}): write it like {DEFAULT_HOST}."
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
            f"{key!r} in the Extra of connection {name!r} must be a number above 0 (got {value!r})."
        )
    return number


def _boolean(name: str, extra: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = extra.get(key)
    if value is None or value == "":
        return default
    word = str(value).lower()
    if word not in ("true", "false"):
        raise HealthExConfigurationError(
            f"{key!r} in the Extra of connection {name!r} must be true or false (got {value!r})."
        )
    return word == "true"


def _verify(name: str, extra: Mapping[str, Any], url: str) -> bool | str:
    value = extra.get("verify")
    if isinstance(value, str) and value.lower() not in ("", "true", "false"):
        if not os.path.exists(value):
            raise HealthExConfigurationError(
                f"'verify' in the Extra of connection {name!r} must be true or the path of a CA bundle on the worker "
                f"(got {value!r}, where there is no file)."
            )
        return value
    verify = _boolean(name, extra, "verify", default=True)
    if not verify and not _is_loopback(urlsplit(url).hostname or ""):
        raise HealthExConfigurationError(
            f"'verify' in the Extra of connection {name!r} is false, which is accepted for loopback hosts only: "
            "anyone on the way could read the token. Give the path of your CA bundle instead."
        )
    return verify
