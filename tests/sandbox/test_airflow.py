"""The sandbox's own Airflow home."""

from __future__ import annotations

import pytest

from airflow_provider_healthex.sandbox.airflow import AirflowHome


@pytest.mark.parametrize("afresh", [False, True])
def test_a_folder_of_somebody_elses_is_left_as_it_is(tmp_path, afresh):
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(ValueError, match="not empty"):
        AirflowHome(tmp_path, tmp_path, {}).migrate(afresh=afresh)
    assert (tmp_path / "precious.txt").read_text() == "keep"


def test_another_airflows_settings_do_not_leak_in(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    assert "AIRFLOW__CORE__EXECUTOR" not in AirflowHome(tmp_path, tmp_path, {}).environment
