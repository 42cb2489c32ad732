"""What all the runs of the other files have left on disk."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.timeout(240)


def test_no_token_is_left_anywhere(real_airflow, begun):
    """In no log, rendered field, XCom, trigger row, serialized DAG or any other row: all files are searched."""
    secrets = [real_airflow.sandbox.api_secret.encode(), *(token.encode() for token in real_airflow.tokens)]
    # What a JWT of the sandbox begins with, so that minted ones are found too.
    start = re.escape(real_airflow.tokens[0].partition(".")[0].encode())
    sandbox_jwt = re.compile(start + rb"\.[A-Za-z0-9_-]{20,}")
    found = []
    files = [file for file in real_airflow.home.path.rglob("*") if file.is_file()]
    assert any(file.name == "airflow.db" for file in files)
    assert any("task_id=refresh" in str(file) for file in files)
    assert {"minted", "stored"} <= {run_id for (run_id,) in real_airflow.query("select run_id from dag_run")}
    for file in files:
        content = file.read_bytes()
        found += [file for secret in secrets if secret in content]
        found += [file for _ in sandbox_jwt.finditer(content)]
    assert found == []
