"""A bucket on moto in this process as the storage that deliveries go to."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import boto3
from botocore.config import Config
from werkzeug.exceptions import NotFound

from airflow_provider_healthex.sandbox.deliveries import StoredFile
from airflow_provider_healthex.sandbox.wsgi import WsgiServer

REGION = "us-east-1"

DEFAULT_BUCKET = "healthex-deliveries"

#: Access key and secret. Moto accepts any.
CREDENTIALS = ("sandbox-s3-key", "sandbox-s3-secret")

#: The largest object that comes in one request, in bytes. Larger ones come in parts.
LARGEST_OBJECT = 64 * 1024 * 1024


def s3_client(endpoint_url: str, credentials: tuple[str, str]) -> Any:
    """Return a boto3 client of a server on this machine."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=credentials[0],
        aws_secret_access_key=credentials[1],
        # A proxy of the environment is not for servers on this machine.
        config=Config(s3={"addressing_style": "path"}, proxies={}, retries={"max_attempts": 2}),
    )


class S3Destination:
    """
    Moto's S3 server, and the bucket that deliveries go to.

    :param port: 0 for a free one.
    :param bucket: None: one that no other sandbox of this process uses, as moto keeps all buckets in its module.
    """

    def __init__(self, port: int, bucket: str | None) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        def app_of(service: Any) -> Any:
            # Moto would serve all of AWS here, and its own control API.
            return create_backend_app(service) if service == "s3" else NotFound("The sandbox serves S3 alone")

        names = [DEFAULT_BUCKET, *(f"{DEFAULT_BUCKET}-{number}" for number in range(2, 1000))]
        self.bucket = bucket or next(name for name in names if name not in self._backend.buckets)
        app = DomainDispatcherApplication(app_of)
        self._server = WsgiServer(app, port, "healthex-s3", largest=LARGEST_OBJECT)
        self.url = self._server.url
        self._client = s3_client(self.url, CREDENTIALS)

    def airflow_connection(self) -> dict[str, Any]:
        """Return an Airflow connection to the server, of type ``aws``."""
        login, password = CREDENTIALS
        extra = {"endpoint_url": self.url, "region_name": REGION}
        return {"conn_type": "aws", "login": login, "password": password, "extra": extra}

    def prepare(self) -> None:
        """Make the bucket."""
        self._client.create_bucket(Bucket=self.bucket)

    def put(self, key: str, body: bytes, *, days_old: float = 0) -> None:
        """Write an object: without a request, which takes 8 ms instead of 50 µs and can't make it old."""
        written = self._backend.put_object(self.bucket, key, body, disable_notification=True)
        written.set_metadata({"Content-Type": "application/fhir+json"})
        written.last_modified -= timedelta(days=days_old)

    def clear(self) -> None:
        """Delete the bucket with all that is in it."""
        if self.bucket not in self._backend.buckets:  # moto's mock_aws, in the same process, deletes all buckets
            return
        keys = self._backend.buckets[self.bucket].keys
        for key in keys.values():
            key.dispose()
        keys.clear()
        self._backend.delete_bucket(self.bucket)

    def files(self, prefix: str) -> list[StoredFile]:
        """Return the objects with this prefix."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [
            StoredFile(row["Key"], row["Size"], row["LastModified"])
            for page in pages
            for row in page.get("Contents", [])
        ]

    def close(self) -> None:
        """End the server and delete the bucket."""
        self._server.stop()
        self.clear()

    @property
    def _backend(self) -> Any:
        from moto.core import DEFAULT_ACCOUNT_ID  # type: ignore[attr-defined]
        from moto.s3.models import s3_backends

        return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
