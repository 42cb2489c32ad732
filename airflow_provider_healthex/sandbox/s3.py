"""S3 as the place deliveries go to: any endpoint, or moto in this process, where objects can be made old."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from werkzeug.exceptions import NotFound

from airflow_provider_healthex.sandbox.deliveries import StoredFile
from airflow_provider_healthex.sandbox.wsgi import WsgiServer

REGION = "us-east-1"
CONTENT_TYPE = "application/fhir+json"


def s3_client(endpoint_url: str, credentials: tuple[str, str] | None) -> Any:
    """
    Return a boto3 client.

    :param endpoint_url: of the S3 server.
    :param credentials: access key and secret; None: where boto3 finds them by itself.
    """
    key, secret = credentials or (None, None)
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        # A proxy of the environment is not for servers on this machine.
        config=Config(s3={"addressing_style": "path"}, proxies={}, retries={"max_attempts": 2}),
    )


class S3Destination:
    """A bucket that deliveries are put into, on any S3 server."""

    sets_times = False

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self.bucket = bucket
        self._keys: set[str] = set()

    def put(self, key: str, body: bytes, *, days_old: float = 0) -> None:
        """Write a file, over the one that is there. It can't be made to look old: no S3 API does that."""
        self._keys.add(key)
        self._client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=CONTENT_TYPE)

    def prepare(self) -> None:
        """Make the bucket where it is missing."""
        try:
            self._client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            self._client.create_bucket(Bucket=self.bucket)

    def take_back(self) -> None:
        """Delete what was put, and nothing else."""
        for key in self._keys:
            self._client.delete_object(Bucket=self.bucket, Key=key)
        self._keys.clear()

    def files(self, prefix: str) -> list[StoredFile]:
        """Return what is there whose key begins so."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [
            StoredFile(row["Key"], row["Size"], row["LastModified"])
            for page in pages
            for row in page.get("Contents", [])
        ]

    def age(self, key: str, days: float) -> None:
        """Refuse: no S3 API makes an object older."""
        raise RuntimeError("Only the sandbox's own S3 server can make an object old.")


#: The largest object that comes in one request, in bytes. Larger ones come in parts.
LARGEST_OBJECT = 64 * 1024 * 1024


class OwnS3(WsgiServer):
    """Moto's S3 in this process. All in one process share the buckets, as moto keeps them in the module."""

    def __init__(self, host: str, port: int) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        def app_of(service: Any) -> Any:
            # Moto would serve all of AWS here, and its own control API.
            return create_backend_app(service) if service == "s3" else NotFound("The sandbox serves S3 alone")

        super().__init__(DomainDispatcherApplication(app_of), host, port, "healthex-s3", largest=LARGEST_OBJECT)

    def has(self, bucket: str) -> bool:
        """Whether this process has that bucket already."""
        return bucket in self._backend.buckets

    def put(self, bucket: str, key: str, body: bytes, days_old: float = 0) -> None:
        """Write an object without a request: 50 µs in place of 8 ms."""
        written = self._backend.put_object(bucket, key, body, disable_notification=True)
        written.set_metadata({"Content-Type": CONTENT_TYPE})
        written.last_modified -= timedelta(days=days_old)

    def age(self, bucket: str, key: str, days: float) -> None:
        """Make an object older, which no S3 API can."""
        self._backend.buckets[bucket].keys[key].last_modified -= timedelta(days=days)

    def drop(self, bucket: str) -> None:
        """Forget a bucket with all that is in it."""
        if not self.has(bucket):  # moto's mock_aws, in the same process, forgets all buckets
            return
        keys = self._backend.buckets[bucket].keys
        for key in keys.values():
            key.dispose()
        keys.clear()
        self._backend.delete_bucket(bucket)

    @property
    def _backend(self) -> Any:
        from moto.core import DEFAULT_ACCOUNT_ID  # type: ignore[attr-defined]
        from moto.s3.models import s3_backends

        return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]


class OwnDestination(S3Destination):
    """
    A bucket on moto in this process.

    :param server: moto.
    :param client: to make the bucket with, and to list it.
    """

    sets_times = True

    def __init__(self, server: OwnS3, client: Any, bucket: str) -> None:
        super().__init__(client, bucket)
        self._server = server

    def put(self, key: str, body: bytes, *, days_old: float = 0) -> None:
        """Write a file, over the one that is there."""
        self._server.put(self.bucket, key, body, days_old)

    def take_back(self) -> None:
        """Forget the bucket with all that is in it."""
        self._server.drop(self.bucket)

    def age(self, key: str, days: float) -> None:
        """Make an object older."""
        self._server.age(self.bucket, key, days)
