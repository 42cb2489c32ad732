"""Which bucket and paths the sensors' arguments name."""

from __future__ import annotations

import pytest

from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.sensors.bucket import bucket_and_paths
from airflow_provider_healthex.storage.s3 import AwsAccess, Bucket

ACCESS_POINT = "arn:aws:s3:eu-central-1:123456789012:accesspoint/deliveries"
BUCKETS = [
    "bucket",
    "deliveries-abc123-s3alias",
    ACCESS_POINT,
    ACCESS_POINT.replace("accesspoint/", "accesspoint:"),
    "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/deliveries",
    "arn:aws:s3::123456789012:accesspoint/abc123.mrap",
    "arn:aws:s3-outposts:eu-central-1:123456789012:outpost/op-1/accesspoint/deliveries",
    "arn:aws:s3-outposts:eu-central-1:123456789012:outpost:op-1:accesspoint:deliveries",
]


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("path", ["d/{healthexPatientId}/", "accesspoint/d/?/*.json", "d//x", ""])
def test_a_url_names_bucket_and_path(bucket, path):
    assert bucket_and_paths(None, f"s3://{bucket}/{path}") == (bucket, [path])


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_name_and_a_path_are_taken_as_they_are(bucket):
    assert bucket_and_paths(bucket, ["d/", "e/"]) == (bucket, ["d/", "e/"])


@pytest.mark.parametrize("bucket", BUCKETS)
def test_the_uri_of_a_result_is_a_path_for_another_sensor(bucket):
    assert bucket_and_paths(None, Bucket(bucket, AwsAccess(None)).uri("d/p/")) == (bucket, ["d/p/"])


@pytest.mark.parametrize("bucket", ["arn:aws:s3:::bucket", "arn:aws:iam::123456789012:role/x", "s3://bucket", "a b", 7])
def test_what_no_bucket_is_called_is_refused(bucket):
    with pytest.raises(HealthExConfigurationError, match="bucket_name must be a bucket's name, or an access point's"):
        bucket_and_paths(bucket, "d/")
