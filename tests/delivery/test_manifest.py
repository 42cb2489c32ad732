"""The lines of a manifest."""

from __future__ import annotations

import json
from datetime import datetime, timezone

from airflow_provider_healthex.delivery import StoredObject
from airflow_provider_healthex.delivery.manifest import manifest_lines

MOMENT = datetime(2026, 11, 22, 17, 40, 5, tzinfo=timezone.utc)


def lines(*objects: StoredObject, patient_id: str | None = "patient-1") -> list[str]:
    return list(manifest_lines(objects, uri="s3://bucket/{}".format, patient_id=patient_id))


def test_a_line_tells_one_object():
    (line,) = lines(StoredObject("d/a.json", MOMENT, 12, '"abc-2"'))
    assert json.loads(line) == {
        "uri": "s3://bucket/d/a.json",
        "size": 12,
        "etag": "abc-2",
        "last_modified": "2026-11-22T17:40:05+00:00",
        "patient_id": "patient-1",
    }


def test_each_object_has_its_line_in_their_order():
    told = [json.loads(line)["uri"] for line in lines(StoredObject("b", MOMENT, 1), StoredObject("a", MOMENT, 1))]
    assert told == ["s3://bucket/b", "s3://bucket/a"]


def test_no_key_can_break_its_line():
    (line,) = lines(StoredObject('d/a\n"b"\u2028ü.json', MOMENT, 1))
    assert line.splitlines() == [line]
    assert json.loads(line)["uri"] == 's3://bucket/d/a\n"b"\u2028ü.json'


def test_an_unknown_patient_is_null():
    (line,) = lines(StoredObject("a", MOMENT, 1), patient_id=None)
    assert json.loads(line)["patient_id"] is None


def test_nothing_delivered_is_no_line():
    assert lines() == []
