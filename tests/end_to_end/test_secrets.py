"""The files that all the runs of the other tests have left on disk."""

from __future__ import annotations

import contextlib
import re
import sqlite3

import pytest
from helpers.outreach import links
from helpers.running import HAS_APPROVAL, wait_for

pytestmark = pytest.mark.timeout(240)


def test_no_token_is_left_anywhere(real_airflow, begun):
    """In no log, rendered field, XCom, trigger row, serialized DAG or any other row: all files are searched."""
    secrets = [real_airflow.sandbox.api_secret.encode(), *(token.encode() for token in real_airflow.tokens)]
    # The start of each JWT of the sandbox, so that minted ones are found too.
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


def test_no_link_and_no_patients_address_is_left_anywhere(real_airflow, begun):
    """Not in the database, of which every row is read, nor in any log, also where a mail was refused and repeated."""
    wait_for("all have a mail", lambda: len(links(real_airflow.sandbox)) == (3 if HAS_APPROVAL else 2))
    mailed = links(real_airflow.sandbox)
    secrets = [*mailed, *mailed.values(), *(link.rpartition("/")[2] for link in mailed.values()), "/link/"]
    with contextlib.closing(sqlite3.connect(real_airflow.home.path / "airflow.db")) as database:
        rows = "\n".join(database.iterdump())
    assert "ask_to_sign_in" in rows
    logs = real_airflow.logs("*.log*")
    logs[str(real_airflow.home.path / "standalone.log")] = (real_airflow.home.path / "standalone.log").read_text()
    assert any("The mail was not sent: SMTP" in text for text in logs.values())
    assert [secret for secret in secrets if secret in rows] == []
    assert [(file, secret) for file, text in logs.items() for secret in secrets if secret in text] == []
