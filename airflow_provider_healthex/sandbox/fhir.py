"""Synthetic FHIR R4 bundles: the same for the same patient and version, and marked as test data."""

from __future__ import annotations

import random
import uuid
from datetime import date, timedelta
from typing import Any

#: HL7's code for data of no real person.
TEST_DATA = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ActReason",
    "code": "HTEST",
    "display": "test health data",
}

_SNOMED = "http://snomed.info/sct"
_LOINC = "http://loinc.org"
_UCUM = "http://unitsofmeasure.org"
_RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
_HL7 = "http://terminology.hl7.org/CodeSystem/"

_CONDITIONS = (
    ("38341003", "Hypertensive disorder, systemic arterial (disorder)"),
    ("44054006", "Diabetes mellitus type 2 (disorder)"),
    ("195967001", "Asthma (disorder)"),
    ("55822004", "Hyperlipidemia (disorder)"),
)
_OBSERVATIONS = (  # code, name, unit, UCUM, lowest, highest, category
    ("8867-4", "Heart rate", "beats/minute", "/min", 55, 95, "vital-signs"),
    ("29463-7", "Body weight", "kg", "kg", 50, 110, "vital-signs"),
    ("4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood", "%", "%", 5, 9, "laboratory"),
    ("2093-3", "Cholesterol [Mass/volume] in Serum or Plasma", "mg/dL", "mg/dL", 140, 260, "laboratory"),
)
_ALLERGIES = (("91936005", "Allergy to penicillin (finding)"), ("91935009", "Allergy to peanut (finding)"))
_MEDICATIONS = (
    ("314076", "lisinopril 10 MG Oral Tablet"),
    ("860975", "metformin hydrochloride 500 MG Extended Release Oral Tablet"),
)
_FIRST_DAY = date(2020, 1, 1)


def bundle(patient_id: str, version: int, part: int = 0, parts: int = 1, *, brief: bool = False) -> dict[str, Any]:
    """
    Return a bundle, or one part of a refresh that comes in several files.

    :param version: of the refresh, from 1; each adds observations of one day more.
    :param part: from 0. Every part has the Patient, so that its references resolve.
    :param parts: how many there are.
    :param brief: the Patient and the newest observation alone.
    """
    record = _Record(patient_id, version)
    if brief:
        resources = [record.observation(version, *_OBSERVATIONS[0])]
    else:
        resources = [*record.conditions(), *record.observations(), record.allergy(), record.medication()]
    return {
        "resourceType": "Bundle",
        "id": record.id("bundle", version, part),
        "meta": record.meta(),
        "type": "collection",
        "timestamp": record.moment(version),
        "entry": [
            {"fullUrl": f"urn:uuid:{resource['id']}", "resource": resource}
            for resource in [record.patient(), *resources[part::parts]]
        ],
    }


def _concept(system: str, code: str, display: str | None = None) -> dict[str, Any]:
    coding = {"system": system, "code": code}
    return {"coding": [coding | {"display": display}], "text": display} if display else {"coding": [coding]}


class _Record:
    """One patient's record as of a refresh."""

    def __init__(self, patient_id: str, version: int) -> None:
        self.patient_id = patient_id
        self.version = version
        self.random = random.Random(patient_id)

    def id(self, *what: object) -> str:
        name = "/".join(["airflow-provider-healthex", self.patient_id, *map(str, what)])
        return str(uuid.uuid5(uuid.NAMESPACE_URL, name))

    def day(self, version: int) -> date:
        return _FIRST_DAY + timedelta(days=version)

    def moment(self, version: int) -> str:
        return f"{self.day(version).isoformat()}T12:00:00Z"

    def meta(self) -> dict[str, Any]:
        return {"versionId": str(self.version), "lastUpdated": self.moment(self.version), "tag": [dict(TEST_DATA)]}

    def resource(self, kind: str, *what: object, **elements: Any) -> dict[str, Any]:
        return {"resourceType": kind, "id": self.id(kind, *what), "meta": self.meta(), **elements}

    def reference(self) -> dict[str, str]:
        return {"reference": f"urn:uuid:{self.id('Patient')}", "display": "Synthetic patient"}

    def patient(self) -> dict[str, Any]:
        return self.resource(
            "Patient",
            identifier=[{"system": "urn:healthex-sandbox:patient", "value": self.patient_id}],
            active=True,
            name=[{"use": "official", "family": "Synthetic", "given": ["Sandbox"]}],
            gender="unknown",
            # Nobody alive was born on this day, so that it can't be taken for a person's.
            birthDate="1900-01-01",
        )

    def conditions(self) -> list[dict[str, Any]]:
        return [
            self.resource(
                "Condition",
                code,
                clinicalStatus=_concept(f"{_HL7}condition-clinical", "active"),
                verificationStatus=_concept(f"{_HL7}condition-ver-status", "confirmed"),
                category=[_concept(f"{_HL7}condition-category", "problem-list-item")],
                code=_concept(_SNOMED, code, display),
                subject=self.reference(),
                recordedDate=self.day(0).isoformat(),
            )
            for code, display in self.random.sample(_CONDITIONS, 2)
        ]

    def observations(self) -> list[dict[str, Any]]:
        return [self.observation(day, *kind) for day in range(1, self.version + 1) for kind in _OBSERVATIONS]

    def observation(
        self, day: int, code: str, display: str, unit: str, ucum: str, low: int, high: int, category: str
    ) -> dict[str, Any]:
        value = random.Random(f"{self.patient_id}/{day}/{code}").uniform(low, high)
        return self.resource(
            "Observation",
            code,
            day,
            status="final",
            category=[_concept(f"{_HL7}observation-category", category)],
            code=_concept(_LOINC, code, display),
            subject=self.reference(),
            effectiveDateTime=self.moment(day),
            valueQuantity={"value": round(value, 1), "unit": unit, "system": _UCUM, "code": ucum},
        )

    def allergy(self) -> dict[str, Any]:
        code, display = self.random.choice(_ALLERGIES)
        return self.resource(
            "AllergyIntolerance",
            clinicalStatus=_concept(f"{_HL7}allergyintolerance-clinical", "active"),
            verificationStatus=_concept(f"{_HL7}allergyintolerance-verification", "confirmed"),
            code=_concept(_SNOMED, code, display),
            patient=self.reference(),
        )

    def medication(self) -> dict[str, Any]:
        code, display = self.random.choice(_MEDICATIONS)
        return self.resource(
            "MedicationRequest",
            status="active",
            intent="order",
            medicationCodeableConcept=_concept(_RXNORM, code, display),
            subject=self.reference(),
            authoredOn=self.day(0).isoformat(),
        )
