"""What the routes of both APIs work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flask import current_app

from airflow_provider_healthex.sandbox.deliveries import Deliveries
from airflow_provider_healthex.sandbox.faults import Faults
from airflow_provider_healthex.sandbox.mail import Mailbox
from airflow_provider_healthex.sandbox.pace import Pace
from airflow_provider_healthex.sandbox.state import State
from airflow_provider_healthex.sandbox.tokens import Tokens

EXTENSION = "healthex-sandbox"


@dataclass(frozen=True)
class Service:
    """The parts of one sandbox."""

    state: State
    faults: Faults
    tokens: Tokens
    deliveries: Deliveries
    pace: Pace
    mailbox: Mailbox
    reset: Callable[[], None]
    api_key: str
    api_secret: str


def service() -> Service:
    """Return the sandbox that the current request is for."""
    found: Service = current_app.extensions[EXTENSION]
    return found
