"""What waiting for deliveries in S3 has in common, for one patient and for many: the bucket, and S3KeySensor's part."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor

from airflow_provider_healthex.arguments import is_rendered_later
from airflow_provider_healthex.delivery import Target
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.s3 import REQUEST_LIMIT, AwsAccess, Bucket, check_bucket_name, split_url
from airflow_provider_healthex.sensors.arrival import (
    DEFERRAL_GRACE,
    ArrivalSensor,
    known,
    literals,
    refuse_pasted_templates,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import XComArg

_BY_TIME = "arrival is decided by the objects' times; use min_objects, marker or quiet_period"


class BucketArrivalSensor(ArrivalSensor, S3KeySensor):
    """The frame of the sensors on S3: an S3KeySensor by its arguments, with another decision."""

    refused_arguments: ClassVar[Mapping[str, str]] = {
        **ArrivalSensor.refused_arguments,
        "check_fn": _BY_TIME,
        "use_regex": _BY_TIME,
        "metadata_keys": _BY_TIME,
    }

    # For a request that begins before the deadline and one of the last poke, at a server that hangs.
    deferral_grace = DEFERRAL_GRACE + 2 * REQUEST_LIMIT

    def __init__(self, *, bucket_key: str | list[str] | XComArg, **kwargs: Any) -> None:
        super().__init__(bucket_key=bucket_key, **kwargs)
        refuse_pasted_templates(bucket_key)
        if self.botocore_config is not None and not isinstance(self.botocore_config, dict):
            raise HealthExConfigurationError(
                f"botocore_config must be a dict, which a triggerer can be given (got a "
                f"{type(self.botocore_config).__name__})"
            )

    def _literal_paths(self) -> list[str]:
        """
        Return the literal paths in the bucket.

        :raises HealthExConfigurationError: where, whatever is rendered, there is no bucket, or more than one.
        """
        keys, rendered = literals(self.bucket_key or [""]), []
        if isinstance(self.bucket_key, (str, list, tuple)):
            rendered = [key for key in _several(self.bucket_key) if isinstance(key, str) and is_rendered_later(key)]
        if not self.bucket_name:
            for key in rendered:
                beginning = re.split(r"\{[{%#]", key)[0]
                if beginning and not (beginning.startswith("s3://") or "s3://".startswith(beginning)):
                    raise _no_bucket(key)
        return bucket_and_paths(known(self.bucket_name), keys)[1] if keys else []

    def _bucket(self, name: str) -> Bucket:
        return Bucket(name, AwsAccess(self.aws_conn_id, self.region_name, self.verify, self.botocore_config))

    def _check_manifest(self, name: str, manifest: Target, targets: Sequence[Target]) -> str:
        if manifest.prefix.startswith(("s3://", "/")):
            raise HealthExConfigurationError(f"{name} is {manifest.template!r}; give a key of the same bucket, no URL.")
        return super()._check_manifest(name, manifest, targets)


def bucket_and_paths(bucket_name: str | None, bucket_key: str | Sequence[str]) -> tuple[str, list[str]]:
    """Return the bucket and the paths in it. S3Hook's parser would cut a glob off at its first ``?``."""
    buckets, paths = set(), []
    for key in _several(bucket_key):
        bucket, path = bucket_name, key
        if isinstance(key, str) and key.startswith("s3://"):
            if bucket_name:
                raise HealthExConfigurationError(
                    f"bucket_name is {bucket_name!r} and bucket_key is the URL {key!r}; give one of the two."
                )
            bucket, path = split_url(key)
        if not bucket:
            raise _no_bucket(key)
        buckets.add(check_bucket_name(bucket))
        paths.append(path)
    if len(buckets) > 1:
        raise HealthExConfigurationError(
            f"bucket_key names the buckets {sorted(buckets)}; one sensor waits in one bucket."
        )
    return buckets.pop(), paths


def _several(bucket_key: Any) -> Sequence[Any]:
    return bucket_key if isinstance(bucket_key, (list, tuple)) and bucket_key else [bucket_key or ""]


def _no_bucket(key: Any) -> HealthExConfigurationError:
    return HealthExConfigurationError(f"No bucket for {key!r}: give bucket_name=…, or bucket_key as s3://bucket/…")
