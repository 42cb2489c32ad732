"""Names of buckets and ``s3://`` URLs."""

from __future__ import annotations

import re

from botocore.handlers import VALID_BUCKET, VALID_S3_ARN

from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: An access point's name has a "/" of its own, of whose sides neither is a bucket.
_ARN_IN_URL = re.compile(r"arn:[^/]*?:(?:outpost[/:][^/:]+[/:])?accesspoint[/:][^/]+")


def split_url(url: str) -> tuple[str, str]:
    """Return the bucket and the key of an ``s3://`` URL; the bucket may be an access point's ARN."""
    rest = url.removeprefix("s3://")
    found = _ARN_IN_URL.match(rest)
    bucket = found.group() if found else rest.partition("/")[0]
    return bucket, rest[len(bucket) + 1 :]


def check_bucket_name(name: str) -> str:
    """Return a bucket's name, an access point's alias or its ARN, refusing what botocore would."""
    if not isinstance(name, str) or not (VALID_BUCKET.search(name) or VALID_S3_ARN.search(name)):
        got = f"a {type(name).__name__}" if not isinstance(name, str) else repr(name)
        raise HealthExConfigurationError(
            f"bucket_name must be a bucket's name, or an access point's alias or ARN (got {got})."
        )
    return name
