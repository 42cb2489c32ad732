"""A place where deliveries land, and a world that goes on while a sensor waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from helpers.places import MotoServer, Place, S3Place, SftpPlace
from helpers.running import wait_for


@pytest.fixture
def later() -> Iterator[Callable[[float | Callable[[], object], Callable[[], object]], None]]:
    """Do something after some seconds, or when something has come true, as the world does while a sensor waits."""
    threads = []

    def start(when: float | Callable[[], object], action: Callable[[], object]) -> None:
        def run() -> None:
            if callable(when):
                wait_for("the moment to act", when, every=0.05)
            else:
                time.sleep(when)
            action()

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)

    yield start
    for thread in threads:
        thread.join()


@pytest.fixture
def after_first_poke(later, task_log) -> Callable[[Callable[[], object]], None]:
    """Do something when the sensor's first poke has found that it has to wait, however long that takes."""
    return lambda action: later(lambda: "Waiting: " in task_log(), action)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[MotoServer]:
    server = MotoServer()
    yield server
    server.stop()


@pytest.fixture(params=["s3", "sftp"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Each of the servers that HealthEx delivers to."""
    if request.param == "sftp":
        yield SftpPlace(request.getfixturevalue("sftp"))
        return
    s3 = S3Place(request.getfixturevalue("moto_server"), monkeypatch)
    yield s3
    s3.close()
