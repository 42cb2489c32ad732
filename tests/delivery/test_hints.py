"""Why nothing matches a path: compared with what is there."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from helpers.stores import MemoryS3, run

from airflow_provider_healthex.delivery import expand
from airflow_provider_healthex.delivery.hints import s3_hint, sftp_hint
from airflow_provider_healthex.delivery.plan import alone
from airflow_provider_healthex.delivery.sftp_requests import Entry, EntryType, ListFolder

NOW = datetime(2026, 11, 22, 17, 41, 5, tzinfo=timezone.utc)
VALUES = {"healthexPatientId": "patient-1", "projectId": "p"}


def hint(path: str, *keys: str, wildcard: bool = False) -> tuple[str | None, int]:
    """Return the hint, and how many requests it took."""
    s3 = MemoryS3(dict.fromkeys(keys, NOW), NOW)
    return s3.run(alone(s3_hint(expand(path, VALUES, wildcard=wildcard), "x"))), len(s3.requests)


@pytest.mark.parametrize(
    ("path", "keys", "wildcard", "text"),
    [
        (
            "d/{healthexPatientId}",
            ["d/patient-1/1", "d/patient-1/2", "d/patient-1/3"],
            False,
            "No key is exactly 'd/{healthexPatientId}', but 3 objects lie below it: end the path with '/'",
        ),
        (
            "d/p/x",
            ["d/p/x/1"],
            False,
            "No key is exactly 'd/p/x', but 1 object lies below it: end the path with '/'",
        ),
        ("data/{healthexPatientId}/", ["dat/1", "database"], False, "Nothing lies under 'data/' in bucket 'x'"),
        ("data/{projectId}/*.json", ["dat/1"], True, "Nothing lies under 'data/' in bucket 'x'"),
        ("data/p", ["dat/1"], False, "Nothing lies under 'data/' in bucket 'x'"),
        ("{healthexPatientId}/", [], False, "Nothing lies in bucket 'x'"),
        (
            "d/*/{healthexPatientId}/",
            ["d/a/patient-1/1"],
            False,
            "'*' in the path 'd/*/{healthexPatientId}/' is taken literally: set wildcard_match=True to read it as",
        ),
        ("/d/{healthexPatientId}/", ["d/patient-1/1"], False, "write 'd/{healthexPatientId}/'"),
        ("d//{healthexPatientId}///a.json", [], False, "write 'd/{healthexPatientId}/a.json'"),
    ],
)
def test_a_typing_error_is_named(path, keys, wildcard, text):
    found, requests = hint(path, *keys, wildcard=wildcard)
    assert found is not None
    assert text in found
    assert "patient-1" not in found
    assert requests <= 2


@pytest.mark.parametrize(
    ("path", "keys", "wildcard"),
    [
        ("d/{healthexPatientId}/", ["d/patient-2/1"], False),
        ("d/{healthexPatientId}.json", ["d/patient-2.json"], False),
        ("d/*/{healthexPatientId}/*.json", ["d/a/patient-2/1"], True),
        ("{healthexPatientId}/", ["patient-2/1"], False),
    ],
)
def test_where_others_have_deliveries_nothing_is_wrong(path, keys, wildcard):
    assert hint(path, *keys, wildcard=wildcard)[0] is None


def drive(path: str, **entries: list[Entry]) -> str | None:
    steps = sftp_hint(expand(path, VALUES))
    assert steps is not None

    def answer(request):
        found = entries.get(request.path.rstrip("/").replace("/", "_"))
        as_folder = Entry(request.path, EntryType.FOLDER) if found is not None else None
        return found if isinstance(request, ListFolder) else as_folder

    return run(alone(steps), answer)


def test_on_sftp_a_folder_that_was_taken_for_a_file_is_named():
    files = [Entry("a", EntryType.FILE), Entry("b", EntryType.FILE), Entry("c", EntryType.FOLDER)]
    assert drive("d/{healthexPatientId}", **{"d_patient-1": files}) == (
        "'d/{healthexPatientId}' is a folder with 2 files: end the path with '/'"
    )
    assert drive("d/{healthexPatientId}") is None
    assert drive("d/*") == "'*' in the path 'd/*' is taken literally: set wildcard_match=True to read it as a glob"


def test_on_sftp_a_folder_takes_no_request():
    assert sftp_hint(expand("d/{healthexPatientId}/", VALUES)) is None
