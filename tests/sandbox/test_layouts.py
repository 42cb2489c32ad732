from __future__ import annotations

import re

import pytest
from helpers.sandbox import Caller

from airflow_provider_healthex.sandbox import Sandbox, patients
from airflow_provider_healthex.sandbox.layouts import LAYOUTS

DAY = r"\d{4}-\d\d-\d\d"
UUID = r"[0-9a-f-]{36}"
FOLDER = f"d/project-demo/{patients.IN_PROGRESS}"
KEYS = {
    "overwritten": rf"{FOLDER}/bundle\.json",
    "several": rf"{FOLDER}/bundle-[1-5]\.json",
    "dated": rf"{FOLDER}/{DAY}/bundle\.json",
    "by-day": rf"d/project-demo/{DAY}/{patients.IN_PROGRESS}/bundle\.json",
    "retrieval": rf"{FOLDER}/{UUID}/bundle-[12]\.json",
    "marker": rf"{FOLDER}/(bundle-[1-3]\.json|_SUCCESS)",
    "in-name": rf"{FOLDER}_{DAY}_bundle\.json",
    "external": r"d/project-demo/ext-in-progress/bundle\.json",
}


@pytest.fixture(params=LAYOUTS)
def laid_out(request):
    with Sandbox(layout=request.param, delay=0.2) as sandbox:
        yield request.param, sandbox


def of_the_patient(sandbox):
    rows = sandbox.s3_client().list_objects_v2(Bucket=sandbox.bucket)["Contents"]
    return [row for row in rows if "in-progress" in row["Key"]]


def test_earlier_deliveries_and_new_ones_have_the_shape(laid_out):
    name, sandbox = laid_out
    earlier = {row["Key"] for row in of_the_patient(sandbox)}
    Caller(sandbox).update(patients.IN_PROGRESS)
    sandbox.wait_until_delivered()
    later = {row["Key"] for row in of_the_patient(sandbox)}
    assert all(re.fullmatch(KEYS[name], key) for key in later)
    if LAYOUTS[name].history > 1:
        assert earlier < later, "a delivery has names of its own"
    else:
        assert earlier == later, "a delivery is written over the last one"


def test_a_marker_is_empty_and_comes_last():
    with Sandbox(layout="marker", delay=4) as sandbox:
        *files, marker = sorted(sandbox.files(patients.IN_PROGRESS), key=lambda file: file.modified)
    assert (marker.path.rpartition("/")[2], marker.size) == ("_SUCCESS", 0)
    assert all(file.size and file.modified < marker.modified for file in files)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="layout must be one of overwritten, several"):
        Sandbox(layout="heap")
