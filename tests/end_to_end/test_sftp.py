"""Waiting on an SFTP server, on a whole Airflow: the triggerer reads its connection, and knows its clock is off."""

from __future__ import annotations

import time

import pytest
from helpers import openssh
from helpers.places import FOLDER
from helpers.running import VERSION, wait_for
from helpers.support import utc_now

pytestmark = [
    pytest.mark.skipif(not openssh.HAS_SERVER, reason=openssh.MISSING),
    pytest.mark.skipif(VERSION == (3, 0), reason="the triggerer of Airflow 3.0 can't read an SFTP connection's Extra"),
]


def test_the_triggerer_waits_on_a_server_whose_clock_is_hours_behind(real_airflow, begun, openssh_server):
    def put(body: bytes, age: float) -> None:
        openssh_server.put(FOLDER + "bundle.json", body, modified=time.time() - age)

    put(b"old", 30 * 24 * 3600)
    real_airflow.trigger("sftp_deferred", "sftp", since=utc_now().isoformat())
    wait_for("the sensor is deferred", lambda: real_airflow.states("sftp").get("arrival") == "deferred")
    # A trigger that fires before the scheduler has read that gets its task failed (apache/airflow#72716). With an
    # interval of 1 s that happens; sensors have 60 s.
    wait_for("the scheduler knows", lambda: real_airflow.scheduler_has_read("sftp_deferred"))
    put(b"refreshed", 5 * 3600)
    assert real_airflow.wait("sftp") == "success"
    assert real_airflow.result("sftp", "arrival")["total_bytes"] == len("refreshed")
    logs = "".join(real_airflow.logs("*sftp_deferred*/**/*"))
    assert "asyncssh" not in logs
