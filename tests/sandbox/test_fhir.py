"""The bundles are FHIR R4, synthetic, and the same for the same patient and version."""

from __future__ import annotations

import json

import pytest
from fhir.resources.R4B.bundle import Bundle

from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sandbox.fhir import TEST_DATA, bundle

REQUIRED = {  # by FHIR R4, and the invariants that R4 states for these elements
    "Patient": set(),
    "Condition": {"subject", "clinicalStatus"},
    "Observation": {"status", "code"},
    "AllergyIntolerance": {"patient", "clinicalStatus"},
    "MedicationRequest": {"status", "intent", "medicationCodeableConcept", "subject"},
}
SYSTEMS = {
    "http://snomed.info/sct",
    "http://loinc.org",
    "http://unitsofmeasure.org",
    "http://www.nlm.nih.gov/research/umls/rxnorm",
}
BUNDLES = [(each, version, part, 3) for each in patients.SCENARIOS for version in (1, 3) for part in range(3)]


def resources(found):
    return [entry["resource"] for entry in found["entry"]]


def values(node, name):
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == name)
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from values(each, name)


@pytest.mark.parametrize("patient_id", patients.SCENARIOS)
def test_a_bundle_holds_to_r4(patient_id):
    for found in (bundle(patient_id, 1), bundle(patient_id, 3), bundle(patient_id, 2, 1, 3)):
        check_r4(found)


def check_r4(found):
    assert (found["resourceType"], found["type"]) == ("Bundle", "collection")
    urls = [entry["fullUrl"] for entry in found["entry"]]
    assert len(set(urls)) == len(urls)
    assert set(values(found, "reference")) <= set(urls)
    for url, resource in zip(urls, resources(found), strict=True):
        assert url == f"urn:uuid:{resource['id']}"
        assert REQUIRED[resource["resourceType"]] <= set(resource)
        assert resource["meta"]["tag"] == [TEST_DATA]
    for system in set(values(found["entry"], "system")) - {TEST_DATA["system"], "urn:healthex-sandbox:patient"}:
        assert system in SYSTEMS or system.startswith("http://terminology.hl7.org/CodeSystem/")


def test_a_model_of_fhir_accepts_the_bundles():
    for arguments in [*BUNDLES, (patients.IN_PROGRESS, 2)]:
        found = bundle(*arguments)
        parsed = Bundle.model_validate_json(json.dumps(found))
        assert len(parsed.entry) == len(found["entry"])


def test_a_whole_refresh_has_every_kind_of_resource():
    assert {each["resourceType"] for each in resources(bundle(patients.IN_PROGRESS, 1))} == set(REQUIRED)


def test_the_parts_are_the_whole():
    whole = {each["id"] for each in resources(bundle(patients.SEVERAL_FILES, 2))}
    parts = [resources(bundle(patients.SEVERAL_FILES, 2, part, 3)) for part in range(3)]
    assert {each["id"] for part in parts for each in part} == whole
    assert all(part[0]["resourceType"] == "Patient" for part in parts)


def test_it_is_the_same_for_the_same_patient_and_version():
    assert bundle(patients.PARTIAL, 2) == bundle(patients.PARTIAL, 2)
    assert bundle(patients.PARTIAL, 2) != bundle(patients.IN_PROGRESS, 2)


def test_a_later_version_keeps_what_was_there():
    before = {each["id"] for each in resources(bundle(patients.PARTIAL, 1))}
    after = {each["id"] for each in resources(bundle(patients.PARTIAL, 2))}
    assert before < after


def test_the_patient_is_nobody():
    patient = resources(bundle(patients.PARTIAL, 1))[0]
    assert patient["birthDate"] == "1900-01-01"
    assert patient["name"][0]["family"] == "Synthetic"
    assert patient["identifier"][0]["value"] == patients.PARTIAL
