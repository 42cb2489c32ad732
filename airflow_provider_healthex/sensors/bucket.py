"""The bucket's part of the sensors on S3: which arguments name it, and which of S3KeySensor's are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from airflow_provider_healthex.arguments import is_rendered_later
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.sensors.awaited import Storage
from airflow_provider_healthex.sensors.base import DEFERRAL_GRACE, ArrivalSensor
from airflow_provider_healthex.sensors.checks import known, literals, refuse_pasted_templates
from airflow_provider_healthex.storage.s3 import REQUEST_LIMIT, AwsAccess, Bucket
from airflow_provider_healthex.storage.s3_names import check_bucket_name, split_url

_BY_TIME = "arrival is decided by the objects' times; use min_objects, marker or quiet_period"

REFUSED_ARGUMENTS = {
    **ArrivalSensor.refused_arguments,
    "check_fn": _BY_TIME,
    "use_regex": _BY_TIME,
    "metadata_keys": _BY_TIME,
}
# For a request that begins before the deadline and one of the last poke, at a server that hangs.
GRACE = DEFERRAL_GRACE + 2 * REQUEST_LIMIT


def check_literals(sensor: Any) -> list[str]:
    """
    Check what an S3 sensor's arguments say of the bucket when the DAG is parsed, and return the literal paths in it.

    :raises HealthExConfigurationError: where, whatever is rendered, there is no bucket, or more than one.
    """
    refuse_pasted_templates(sensor.bucket_key)
    if sensor.botocore_config is not None and not isinstance(sensor.botocore_config, dict):
        raise HealthExConfigurationError(
            f"botocore_config must be a dict, which a triggerer can be given (got a "
            f"{type(sensor.botocore_config).__name__})"
        )
    check_manifest_key(sensor.manifest_key)
    keys, rendered = literals(sensor.bucket_key or [""]), []
    if isinstance(sensor.bucket_key, (str, list, tuple)):
        rendered = [key for key in _several(sensor.bucket_key) if isinstance(key, str) and is_rendered_later(key)]
    if not sensor.bucket_name:
        for key in rendered:
            beginning = re.split(r"\{[{%#]", key)[0]
            if beginning and not (beginning.startswith("s3://") or "s3://".startswith(beginning)):
                raise _no_bucket(key)
    return bucket_and_paths(known(sensor.bucket_name), keys)[1] if keys else []


def open_bucket(sensor: Any) -> tuple[Storage, list[str]]:
    """Return the bucket that a sensor's rendered arguments name, and the paths in it."""
    check_manifest_key(sensor.manifest_key)
    name, paths = bucket_and_paths(sensor.bucket_name, sensor.bucket_key)
    access = AwsAccess(sensor.aws_conn_id, sensor.region_name, sensor.verify, sensor.botocore_config)
    return Bucket(name, access), paths


def check_manifest_key(key: Any) -> None:
    """Refuse a manifest's key that isn't one of the same bucket."""
    if isinstance(key, str) and key.startswith(("s3://", "/")):
        raise HealthExConfigurationError(f"manifest_key is {key!r}; give a key of the same bucket, no URL.")


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
