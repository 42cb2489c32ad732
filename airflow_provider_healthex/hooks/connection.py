"""
How an Airflow connection is found: only a definite "not found" is final, all else is retried and ends retryable.

Airflow answers "not found" also where a backend failed: the reason goes to the debug log. So each backend is requested
once more by itself, and what it raises counts. One case stays open on Airflow 3: its API server answers 404 alike for
a connection that doesn't exist and for a database that is in trouble. There, "not found" is believed only when it has
been the answer for all of `DELAYS`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook
from asgiref.sync import sync_to_async

from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExConnectionError, HealthExError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

log = logging.getLogger(__name__)

#: Seconds between the tries.
DELAYS = (1.0, 2.0, 4.0, 8.0)


class ConnectionNotFound(HealthExConfigurationError):
    """There is no such connection."""


@dataclass(frozen=True)
class _Failed:
    """
    A look-up that found nothing.

    :param error: what the caller gets if it was the last one.
    :param final: whether a retry can't help.
    """

    error: HealthExError
    final: bool = False


def find_connection(
    conn_id: str, *, stop: threading.Event | None = None, retry: bool = True, confirm: bool = True
) -> Connection:
    """
    Return an Airflow connection. Blocks: not for an event loop.

    :param stop: ends the waits between the tries.
    :param retry: False for one try.
    :param confirm: False where a connection is often missing on purpose: then the first "not found" is believed.
    :raises ConnectionNotFound: there is no such connection.
    :raises HealthExConfigurationError: the connection in the environment can't be parsed.
    :raises HealthExConnectionError: Airflow could not look it up; nothing was sent, and it is safe to retry.
    """
    stop = stop or threading.Event()
    for delay in DELAYS if retry else ():
        found = _look_up(conn_id)
        if not isinstance(found, _Failed) or _is_last(found, confirm) or stop.is_set():
            return _result(found)
        _report(found, delay)
        stop.wait(delay)
    return _result(_look_up(conn_id))


async def find_connection_async(conn_id: str, *, confirm: bool = True) -> Connection:
    """Do what `find_connection` does, without blocking the event loop."""
    # In asgiref's thread, as the triggerer's channel to its supervisor belongs to the loop that waits for it.
    look_up = sync_to_async(_look_up)
    for delay in DELAYS:
        found = await look_up(conn_id)
        if not isinstance(found, _Failed) or _is_last(found, confirm):
            return _result(found)
        _report(found, delay)
        await asyncio.sleep(delay)
    return _result(await look_up(conn_id))


def _is_last(failed: _Failed, confirm: bool) -> bool:
    return failed.final or (isinstance(failed.error, ConnectionNotFound) and not confirm)


def _report(failed: _Failed, delay: float) -> None:
    log.warning("%s Retrying in %g s.", failed.error, delay)


def _result(found: Any) -> Connection:
    if isinstance(found, _Failed):
        raise found.error
    connection: Connection = found
    return connection


def _look_up(conn_id: str) -> Any:
    """Return the connection, or `_Failed`. What the other side says is left out: it may quote a secret."""
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        pass
    except Exception as error:
        if not isinstance(error, ImportError) or _channel() is not None:  # Airflow 3.0 outside a task
            return _in_trouble(conn_id, type(error).__name__)
    for backend in _backends():
        name = type(backend).__name__
        try:
            if name == "ExecutionAPISecretsBackend":
                answer = _api_answer(conn_id)
            else:
                answer = "found" if backend.get_connection(conn_id=conn_id) else None
        except Exception as error:
            if name == "EnvironmentVariablesBackend":
                return _Failed(_unparsable(conn_id, type(error).__name__), final=True)
            answer = type(error).__name__
        if answer:
            return _in_trouble(conn_id, f"{name}: {answer}")
    return _Failed(
        ConnectionNotFound(f"There is no Airflow connection {conn_id!r}: create the connection, or correct its id."),
        final=_channel() is None,
    )


def _in_trouble(conn_id: str, reason: str) -> _Failed:
    return _Failed(
        HealthExConnectionError(
            f"Airflow's look-up of connection {conn_id!r} failed ({reason}): nothing was sent, and it is safe to "
            "retry. Check Airflow's API server, its database and its secrets backend."
        )
    )


def _unparsable(conn_id: str, reason: str) -> HealthExConfigurationError:
    return HealthExConfigurationError(
        f"The connection {conn_id!r} can't be parsed ({reason}): correct the environment variable "
        f"AIRFLOW_CONN_{conn_id.upper()}, a URI or JSON."
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
    """Return what went wrong at Airflow's API; None where it knows no such connection."""
    from airflow.sdk.exceptions import ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse, GetConnection

    answer = _channel().send(GetConnection(conn_id=conn_id))
    if not isinstance(answer, ErrorResponse):
        return "found"
    return None if answer.error == ErrorType.CONNECTION_NOT_FOUND else str(answer.error.value)
