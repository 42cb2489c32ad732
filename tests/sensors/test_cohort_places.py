"""A cohort's arrival: one table of cases for S3 and for SFTP, in each mode."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout
from helpers.places import Place
from helpers.support import MODES, run_sensor, utc_now

DAY = 24 * 3600


def cohort(*patients: str, ago: float = 0, **entries: dict) -> dict:
    """Return a cohort operator's result: patients requested so many seconds ago."""
    requested_at = (utc_now() - timedelta(seconds=ago)).replace(microsecond=0).isoformat()
    in_progress = [
        {"patient_id": patient, "requested_at": requested_at, **entries.get(patient, {})} for patient in patients
    ]
    return {
        "project_id": "project-1",
        "organization_id": "org-1",
        "requested_at": requested_at,
        "in_progress": in_progress,
        "patient_action_needed": [{"patient_id": "asleep", "reason": "CONSENT_EXPIRED"}],
        "failed": [],
    }


def folder(patient: str) -> str:
    return f"d/project-1/{patient}/"


@pytest.mark.parametrize("mode", MODES)
class TestEveryModeAndPlace:
    def test_all_arrive_each_by_their_own_files(self, place: Place, mode, after_first_poke):
        for patient in ("a", "b", "ab"):
            place.put(folder(patient) + "bundle.json", b"stale", age=30 * DAY)
        place.put(folder("asleep") + "bundle.json")
        place.put(folder("a") + "1.json")

        def deliver() -> None:
            place.put(folder("b") + "bundle.json", b"refreshed")
            place.put(folder("b") + "deep/er.json")
            place.put(folder("ab") + "bundle.json", b"refreshed")

        after_first_poke(deliver)
        run = run_sensor(place.cohort_sensor(mode, update=cohort("a", "b", "ab")))

        assert run.result["bucket"] == getattr(place, "bucket", None)
        assert [one["patient_id"] for one in run.result["arrived"]] == ["a", "b", "ab"]
        assert [one["prefix"] for one in run.result["arrived"]] == [folder("a"), folder("b"), folder("ab")]
        assert [one["object_count"] for one in run.result["arrived"]] in ([1, 2, 1], [1, 1, 1])
        assert (run.result["missing"], run.result["missing_count"], run.result["arrived_count"]) == ([], 0, 3)
        assert run.deferrals == (1 if mode == "deferred" else 0)

    def test_each_is_decided_by_their_own_request(self, place: Place, mode, airflow_database):
        requested = {name: utc_now() - timedelta(seconds=ago) for name, ago in (("early", 7200), ("late", 60))}
        entries = {
            name: {"requested_at": moment.replace(microsecond=0).isoformat()} for name, moment in requested.items()
        }
        for patient in requested:
            place.put(folder(patient) + "bundle.json", age=3600)
        update = cohort("early", "late", **entries)
        result = run_sensor(place.cohort_sensor(mode, update=update, timeout=1, min_fraction=0.5, clock_skew=2)).result
        assert [one["patient_id"] for one in result["arrived"]] == ["early"]
        assert result["missing"] == ["late"]

    def test_too_few_at_the_deadline_are_a_timeout_that_names_how_many(self, place: Place, mode, airflow_database):
        place.put(folder("a") + "1.json")
        with pytest.raises(AirflowSensorTimeout, match=r"Only 1 of 3 patients arrived within 1 s"):
            run_sensor(place.cohort_sensor(mode, update=cohort("a", "b", "c"), timeout=1, min_fraction=0.5))

    def test_after_enough_after_a_part_is_enough(self, place: Place, mode):
        place.put(folder("a") + "1.json")
        waiting = place.cohort_sensor(
            mode, update=cohort("a", "b"), min_fraction=0.5, enough_after=1, timeout=600, poke_interval=0.3
        )
        assert run_sensor(waiting).result["arrived_count"] == 1

    def test_a_marker_ends_each_delivery_and_is_not_data(self, place: Place, mode, later):
        for patient in ("a", "b"):
            place.put(folder(patient) + "1.json")
        place.put(folder("a") + "_SUCCESS", b"")
        later(1, lambda: place.put(folder("b") + "_SUCCESS", b""))
        result = run_sensor(
            place.cohort_sensor(mode, update=cohort("a", "b"), marker="_SUCCESS", quiet_period=3600)
        ).result
        assert [one["object_count"] for one in result["arrived"]] == [1, 1]

    def test_a_glob_before_the_patient(self, place: Place, mode):
        place.put("d/2026-11/a/1.json")
        place.put("d/2026-12/deep/er/b/1.json")
        place.put("d/2026-12/stranger/1.json")
        waiting = place.cohort_sensor(
            mode, update=cohort("a", "b"), path="d/*/{healthexPatientId}/", wildcard_match=True
        )
        assert run_sensor(waiting).result["arrived_count"] == 2

    def test_the_manifest_lists_every_object_once_with_its_patient(self, place: Place, mode):
        for patient in ("a", "b"):
            place.put(folder(patient) + "1.json", b"12")
        place.put(folder("b") + "2.json", b"345")
        waiting = place.cohort_sensor(mode, update=cohort("a", "b"), manifest="manifests/{projectId}.jsonl")

        result = run_sensor(waiting).result

        assert result["manifest"] == place.uri("manifests/project-1.jsonl")
        lines = [json.loads(line) for line in place.read("manifests/project-1.jsonl").splitlines()]
        assert sorted((line["patient_id"], line["uri"], line["size"]) for line in lines) == [
            ("a", place.uri(folder("a") + "1.json"), 2),
            ("b", place.uri(folder("b") + "1.json"), 2),
            ("b", place.uri(folder("b") + "2.json"), 3),
        ]

    def test_nobody_in_progress_is_nothing_to_wait_for(self, place: Place, mode):
        result = run_sensor(place.cohort_sensor(mode, update=cohort())).result
        assert (result["arrived"], result["missing"]) == ([], [])

    def test_a_refused_component_fails_finally(self, place: Place, mode):
        place.deny()
        with pytest.raises(AirflowFailException, match=place.refused):
            run_sensor(place.cohort_sensor(mode, update=cohort("a"), soft_fail=True))


@pytest.mark.parametrize("argument", [{"since": "2026-11-22T00:00:00+00:00"}, {"on_patient_action": "wait"}])
def test_arguments_of_a_single_patient_are_refused(place: Place, argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        place.cohort_sensor(update=cohort("a"), **argument)


def test_a_path_without_the_patient_is_refused_when_the_dag_is_parsed(place: Place):
    with pytest.raises(ValueError, match="doesn't name the patient"):
        place.cohort_sensor(update=cohort("a"), path="d/{projectId}/")
