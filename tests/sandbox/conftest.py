from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from helpers.sandbox import DELAY, Caller

from airflow_provider_healthex.sandbox import Sandbox


@pytest.fixture(scope="session")
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture(scope="session")
def running(events) -> Iterator[Sandbox]:
    with Sandbox(delay=DELAY, on_event=lambda *event: events.append(event)) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running, events) -> Sandbox:
    running.reset()
    events.clear()
    return running


@pytest.fixture
def call(sandbox) -> Caller:
    return Caller(sandbox)


@pytest.fixture(scope="session")
def client(running) -> Any:
    return running.s3_client()


@pytest.fixture
def objects(sandbox, client) -> Callable[[str], dict[str, datetime]]:
    def listed(patient_id: str) -> dict[str, datetime]:
        prefix = sandbox.prefix(patient_id)
        rows = client.list_objects_v2(Bucket=sandbox.bucket, Prefix=prefix).get("Contents", [])
        return {row["Key"].removeprefix(prefix): row["LastModified"] for row in rows}

    return listed


@pytest.fixture
def second() -> datetime:
    """The second in which the test began, as S3 would have it."""
    return datetime.now(timezone.utc).replace(microsecond=0)
