"""Helpers: S3 and SFTP behind the same methods, for tests that hold for both."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from airflow_provider_healthex.sensors.healthex import HealthExCohortArrivalSensor, HealthExDataArrivalSensor
from helpers.openssh import OpenSsh
from helpers.s3_faults import ACCESS_DENIED, FaultyS3
from helpers.support import aws_connection, s3_client, utc_now

PATH = "d/{projectId}/{healthexPatientId}/"
FOLDER = "d/project-1/patient-1/"


def update(**changes: Any) -> dict[str, Any]:
    return {
        "project_id": "project-1",
        "patient_id": "patient-1",
        "organization_id": "org-1",
        "message": "IN_PROGRESS_NO_ACTION_NEEDED",
        "patient_action_needed_reason": None,
        "retrieval_id": None,
        "skipped_facilities_count": 0,
        "counts": {},
        "requested_at": utc_now().replace(microsecond=0).isoformat(),
        **changes,
    }


def arguments(mode: str, **changes: Any) -> dict[str, Any]:
    """Return the arguments of a sensor that is soon satisfied."""
    given = {
        "task_id": "arrival",
        "quiet_period": 0,
        "poke_interval": 0.2,
        "timeout": 20,
        "mode": "poke" if mode == "deferred" else mode,
        "deferrable": mode == "deferred",
        **changes,
    }
    if "update" not in given and "since" not in given:
        given["update"] = update()
    return given


class Place(ABC):
    """A real server that deliveries land on, and the sensor that waits there."""

    kind: type[Any]
    cohort_kind: type[Any]
    #: The arguments that the sensors call otherwise.
    path_argument: str
    manifest_argument: str
    #: The text of an error about a missing place.
    nowhere: str
    #: The text of an error about a component without rights.
    refused: str

    def defaults(self) -> dict[str, Any]:
        """Return the arguments that every sensor has here."""
        return {}

    @abstractmethod
    def storages(self) -> tuple[type, type]:
        """Return the classes that a worker and a triggerer poke with."""

    @abstractmethod
    def put(self, path: str, body: bytes = b"{}", *, age: float = 0) -> datetime:
        """Write a file that seems to be so many seconds old, and return its time."""

    @abstractmethod
    def read(self, path: str) -> bytes: ...

    @abstractmethod
    def uri(self, path: str) -> str: ...

    @abstractmethod
    def deny(self) -> None:
        """Let nobody see anything any more."""

    @abstractmethod
    def take_away(self) -> None: ...

    @abstractmethod
    def bring_back(self) -> None: ...

    @abstractmethod
    def lose(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return a sensor's arguments so that it looks where nothing can be."""

    def sensor(self, mode: str = "poke", **changes: Any) -> Any:
        """Return a sensor; ``path`` and ``manifest`` are what it calls them."""
        return self.kind(**self.arguments(mode, **changes))

    def cohort_sensor(self, mode: str = "poke", **changes: Any) -> Any:
        """Return a sensor for a cohort; ``path`` and ``manifest`` are what it calls them."""
        return self.cohort_kind(**self.arguments(mode, **changes))

    def rendered_sensor(self, mode: str = "poke", **changes: Any) -> Any:
        """Return a sensor whose arguments were templates, and are rendered now."""
        fixed = self.arguments(mode)
        late = self.names(changes)
        task = self.kind(
            **{**fixed, **{name: "{{ params.late }}" for name in late if name in self.kind.template_fields}}
        )
        for name, value in late.items():
            setattr(task, name, value)
        return task

    def arguments(self, mode: str = "poke", **changes: Any) -> dict[str, Any]:
        return {**self.defaults(), **arguments(mode, **self.names({"path": PATH, **changes}))}

    def names(self, changes: dict[str, Any]) -> dict[str, Any]:
        names = {"path": self.path_argument, "manifest": self.manifest_argument}
        return {names.get(name, name): value for name, value in changes.items()}


class MotoServer:
    """Moto on a port of its own, which it keeps when it is away for a while. It takes half a second to stop."""

    def __init__(self) -> None:
        self._port = 0
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"


class S3Place(Place):
    """A bucket of moto's."""

    kind = HealthExDataArrivalSensor
    cohort_kind = HealthExCohortArrivalSensor
    path_argument, manifest_argument = "bucket_key", "manifest_key"
    nowhere = r"NoSuchBucket to the worker .*bucket 'no-such-bucket'"
    refused = r"AccessDenied to the worker \(ListObjectsV2, bucket"

    def __init__(self, server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self._set = lambda url: monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(url))
        self._set(server.endpoint_url)
        self._client = s3_client(server.endpoint_url)
        self._faulty: FaultyS3 | None = None
        self.bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        self._client.create_bucket(Bucket=self.bucket)

    def defaults(self) -> dict[str, Any]:
        # Without botocore's own repetition, so that each refusal is seen.
        config = {"retries": {"total_max_attempts": 1}, "connect_timeout": 2, "read_timeout": 2}
        return {"bucket_name": self.bucket, "botocore_config": config}

    def storages(self) -> tuple[type, type]:
        from airflow_provider_healthex.storage.s3 import AsyncBucket, Bucket

        return Bucket, AsyncBucket

    def put(self, path: str, body: bytes = b"{}", *, age: float = 0) -> datetime:
        self._client.put_object(Bucket=self.bucket, Key=path, Body=body)
        written = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[self.bucket].keys[path]
        written.last_modified -= timedelta(seconds=age)
        return written.last_modified.replace(microsecond=0, tzinfo=timezone.utc)

    def read(self, path: str) -> bytes:
        return self._client.get_object(Bucket=self.bucket, Key=path)["Body"].read()

    def uri(self, path: str) -> str:
        return f"s3://{self.bucket}/{path}"

    def deny(self) -> None:
        self._faulty = FaultyS3().__enter__()
        self._faulty.script([ACCESS_DENIED] * 20)
        self._set(self._faulty.endpoint_url)

    def take_away(self) -> None:
        self.server.stop()

    def bring_back(self) -> None:
        self.server.start()

    def lose(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {**arguments, "bucket_name": "no-such-bucket"}

    def close(self) -> None:
        if self._faulty:
            self._faulty.__exit__()


class SftpPlace(Place):
    """A folder of OpenSSH's."""

    path_argument, manifest_argument = "path", "manifest_path"
    nowhere = r"no folder 'nowhere/' on the SFTP server of sftp_conn_id='sftp_default', as the worker sees it"
    refused = r"worker, listing the SFTP server .*SFTPPermissionDenied"

    def __init__(self, server: OpenSsh) -> None:
        from airflow_provider_healthex.sensors.sftp import (
            HealthExSftpCohortArrivalSensor,
            HealthExSftpDataArrivalSensor,
        )

        self.kind = HealthExSftpDataArrivalSensor
        self.cohort_kind = HealthExSftpCohortArrivalSensor
        self.server = server
        (server.served / "d").mkdir()

    def storages(self) -> tuple[type, type]:
        from airflow_provider_healthex.storage.sftp import AsyncSftpServer, SftpServer

        return SftpServer, AsyncSftpServer

    def put(self, path: str, body: bytes = b"{}", *, age: float = 0) -> datetime:
        return self.server.put(path, body, modified=time.time() - age if age else None)

    def read(self, path: str) -> bytes:
        return (self.server.served / path).read_bytes()

    def uri(self, path: str) -> str:
        return f"sftp://127.0.0.1:{self.server.port}{self.server.served}/{path}"

    def deny(self) -> None:
        self.server.deny("opendir,lstat,stat")

    def take_away(self) -> None:
        self.server.stop()

    def bring_back(self) -> None:
        self.server.start()

    def lose(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {**arguments, "path": "nowhere/{healthexPatientId}/"}
