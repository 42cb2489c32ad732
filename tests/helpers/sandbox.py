"""A client of the sandbox's API, and checks of what it leaves behind."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import requests

from airflow_provider_healthex.sandbox import Sandbox

#: Of the deliveries of the session's sandbox, in seconds.
DELAY = 0.2


@dataclass
class Caller:
    """Calls the sandbox's API as a client would."""

    sandbox: Sandbox
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {self.sandbox.token()}"

    def __call__(self, method: str, path: str, **arguments: Any) -> requests.Response:
        return self.session.request(method, self.sandbox.api_url + path, timeout=10, **arguments)

    def update(self, patient_id: str, body: Any = None, project_id: str = "project-demo", **arguments: Any):
        path = f"/v1/projects/{project_id}/recruitment/identified-patients/{patient_id}/$updateData"
        return self("POST", path, json={} if body is None else body, **arguments)


@contextlib.contextmanager
def no_thread_left() -> Iterator[None]:
    """Check that what is done meanwhile leaves no thread."""
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    assert not [thread.name for thread in left if thread.name.startswith("healthex-")]
    for thread in left:  # that of a request ends by itself when its client has gone
        thread.join(timeout=10)
    assert not [thread for thread in left if thread.is_alive()]


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)
    return result


def is_free(url: str) -> bool:
    host, port = url.removeprefix("http://").rsplit(":", 1)
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0
