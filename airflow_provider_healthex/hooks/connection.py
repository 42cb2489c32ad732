"""
From an Airflow connection to client settings: finding the connection, and reading it.

Only a definite "not found" is final; any other failed look-up is retried, and ends retryable. Airflow answers "not
found" also if a backend failed (the reason goes to the debug log), so each backend is queried once more by itself, and
its error counts. On Airflow 3 one case stays open: the API server answers 404 alike for a missing connection and for a
database in trouble. There, "not found" counts once it was the answer for all of `DELAYS`.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook
from asgiref.sync import sync_to_async

from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExConnectionError, HealthExError
from airflow_provider_healthex.get_provider_info import CONN_FIELDS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_healthex.client import ClientSettings

log = logging.getLogger(__name__)

#: Seconds between the tries.
DELAYS = (1.0, 2.0, 4.0, 8.0)

DEFAULT_HOST = "https://api.healthex.io"

#: Fields of the Extra that are numbers or switches. The connection form stores all fields as text.
_PARSED = ("connect_timeout", "read_timeout", "requests_per_second", "verify", "allow_http")


class ConnectionNotFound(HealthExConfigurationError):
    """There is no such connection."""


class _LookUpFailed(Exception):
    """
    Carries the error of one try.

    :param final: whether a retry can't help.
    """

    def __init__(self, error: HealthExError, *, final: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.final = final

    def is_last(self, delay: float | None, confirm: bool) -> bool:
        unconfirmed = isinstance(self.error, ConnectionNotFound) and not confirm
        if self.final or unconfirmed or delay is None:
            return True
        log.warning("%s Retrying in %g s.", self.error, delay)
        return False


def find_connection(
    conn_id: str, *, cancelled: threading.Event | None = None, retry: bool = True, confirm: bool = True
) -> Connection:
    """
    Return an Airflow connection. Blocks: not for an event loop.

    :param cancelled: ends the waits between the tries.
    :param retry: False for one try.
    :param confirm: False if a connection is often missing on purpose: then the first "not found" counts.
    :raises ConnectionNotFound: there is no such connection.
    :raises HealthExConfigurationError: the connection in the environment can't be parsed.
    :raises HealthExConnectionError: Airflow could not look it up; nothing was sent, and it is safe to retry.
    """
    cancelled = cancelled or threading.Event()
    for delay in (*DELAYS, None) if retry else (None,):
        try:
            return _look_up(conn_id)
        except _LookUpFailed as failed:
            error = failed.error
            if cancelled.is_set() or failed.is_last(delay, confirm):
                break
        cancelled.wait(delay)
    raise error


async def find_connection_async(conn_id: str, *, confirm: bool = True) -> Connection:
    """Do what `find_connection` does, without blocking the event loop."""
    # In asgiref's thread, as the triggerer's channel to its supervisor belongs to the loop that waits for it.
    look_up = sync_to_async(_look_up)
    for delay in (*DELAYS, None):
        try:
            return await look_up(conn_id)
        except _LookUpFailed as failed:
            error = failed.error
            if failed.is_last(delay, confirm):
                break
        await asyncio.sleep(delay or 0)
    raise error


def _look_up(conn_id: str) -> Connection:
    """Return the connection, or raise `_LookUpFailed` without Airflow's words, which may quote a secret."""
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        pass
    except Exception as error:
        if not isinstance(error, ImportError) or _channel() is not None:  # Airflow 3.0 outside a task
            raise _in_trouble(conn_id, type(error).__name__) from None
    for backend in _backends():
        name = type(backend).__name__
        try:
            if name == "ExecutionAPISecretsBackend":
                answer = _api_answer(conn_id)
            else:
                answer = "found" if backend.get_connection(conn_id=conn_id) else None
        except Exception as error:
            answer = type(error).__name__
            if name == "EnvironmentVariablesBackend":
                unparsable = HealthExConfigurationError(
                    f"The connection {conn_id!r} can't be parsed ({answer}): correct the environment variable "
                    f"AIRFLOW_CONN_{conn_id.upper()}, a URI or JSON."
                )
                raise _LookUpFailed(unparsable, final=True) from None
        if answer:
            raise _in_trouble(conn_id, f"{name}: {answer}")
    raise _LookUpFailed(
        ConnectionNotFound(f"There is no Airflow connection {conn_id!r}: create the connection, or correct its id."),
        final=_channel() is None,
    )


def _in_trouble(conn_id: str, reason: str) -> _LookUpFailed:
    return _LookUpFailed(
        HealthExConnectionError(
            f"Airflow's look-up of connection {conn_id!r} failed ({reason}): nothing was sent, and it is safe to "
            "retry. Check Airflow's API server, its database and its secrets backend."
        )
    )


def _channel() -> Any:
    """Return a task's or trigger's channel to Airflow's API; None below Airflow 3, and elsewhere."""
    return getattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS", None)


def _backends() -> list[Any]:
    try:
        from airflow.sdk.execution_time import supervisor
    except ImportError:
        from airflow.configuration import ensure_secrets_loaded

        return list(ensure_secrets_loaded())
    return list(supervisor.ensure_secrets_backend_loaded())


def _api_answer(conn_id: str) -> str | None:
    """Return what went wrong at Airflow's API; None if it has no such connection."""
    from airflow.sdk.exceptions import ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse, GetConnection

    answer = _channel().send(GetConnection(conn_id=conn_id))
    if not isinstance(answer, ErrorResponse):
        return "found"
    return None if answer.error == ErrorType.CONNECTION_NOT_FOUND else str(answer.error.value)


def client_settings(connection: Connection) -> ClientSettings:
    """
    Read a connection. `ClientSettings` checks the values; its errors get the connection's name here.

    :raises HealthExConfigurationError: a field is unusable.
    """
    # Here, as below: triggers only find connections, and start faster without the client.
    from airflow_provider_healthex.client import ApiKey, ClientSettings, StoredToken

    for unknown in unknown_fields(connection):
        log.warning("Connection %r: %s", connection.conn_id, unknown)
    name, extra = f"Connection {connection.conn_id!r}", _extra(connection)
    if not connection.password:
        raise HealthExConfigurationError(
            f"{name} has no password. Put the token there; or, with an API key as login, its secret."
        )
    try:
        return ClientSettings(
            base_url=_base_url(connection),
            credentials=ApiKey(connection.login, connection.password)
            if connection.login
            else StoredToken(connection.password),
            org_id=extra.get("org_id"),
            **{field: _parsed(extra[field]) for field in _PARSED if field in extra},
        )
    except HealthExConfigurationError as error:
        reason = str(error)
    raise HealthExConfigurationError(f"{name}: {reason}.")  # without the cause, which may show a password


def project_of(connection: Connection) -> str:
    """Return the project of the connection's Extra, or raise `HealthExConfigurationError`."""
    from airflow_provider_healthex.client.calls import identifier

    project_id = _extra(connection).get("project_id")
    if project_id is None:
        raise HealthExConfigurationError(
            f"No project: give project_id=…, or set 'project_id' in the Extra of {connection.conn_id!r}."
        )
    return identifier(f"Connection {connection.conn_id!r}: project_id", project_id)


def unknown_fields(connection: Connection) -> list[str]:
    """Return a sentence for each field of the Extra that nothing reads."""
    return [
        f"{name!r} in its Extra is unknown and ignored"
        + "".join(f": did you mean {like!r}?" for like in difflib.get_close_matches(name, CONN_FIELDS, n=1))
        for name in sorted(_extra(connection).keys() - CONN_FIELDS.keys())
    ]


def _extra(connection: Connection) -> dict[str, Any]:
    """Return the fields of the Extra that are filled in."""
    extra = connection.extra_dejson
    return {name: value for name, value in extra.items() if value not in (None, "")} if isinstance(extra, dict) else {}


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _base_url(connection: Connection) -> str:
    host = (connection.host or "").strip() or DEFAULT_HOST
    # A connection's URI keeps its path in the field schema, where other connections have the scheme.
    schema = (connection.schema or "").strip().strip("/")
    scheme, path = (schema, "") if schema in ("http", "https") else ("https", schema)
    url = host if "://" in host else f"{scheme}://{host}"
    try:
        parts = urlsplit(url)
        netloc = parts.netloc if parts.port or not connection.port else f"{parts.netloc}:{connection.port}"
    except ValueError:
        return url  # unusable, as ClientSettings finds
    return parts._replace(netloc=netloc, path=f"{parts.path.rstrip('/')}/{path}").geturl()
