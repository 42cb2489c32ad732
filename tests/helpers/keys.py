"""Listings of made-up accounts, each in one layout."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

from airflow_provider_healthex.check.patterns import KnownIds
from airflow_provider_healthex.delivery import StoredObject

NOW = datetime(2026, 11, 25, 12, tzinfo=timezone.utc)
PROJECT, ORGANIZATION = "694d61c2-3f1b", "org-77aa01"

Keys = Callable[[str, str, datetime, str], list[str]]


def _uuid(*seed: object) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, repr(seed)))


#: Of a patient, external id, moment of a delivery and its retrieval: the keys, in the order they come.
LAYOUTS: dict[str, tuple[Keys, str, bool]] = {
    "one file": (lambda p, e, t, r: [f"d/{PROJECT}/{p}/bundle.json"], "d/{projectId}/{healthexPatientId}/", False),
    "several": (
        lambda p, e, t, r: [f"in/{ORGANIZATION}/{p}/{name}.ndjson" for name in ("Patient", "Condition", "Observation")],
        "in/{orgId}/{healthexPatientId}/",
        False,
    ),
    "dated": (lambda p, e, t, r: [f"d/{p}/{t:%Y-%m-%d}/b.json"], "d/{healthexPatientId}/", False),
    "nested days": (
        lambda p, e, t, r: [f"d/{t:%Y/%m/%d}/{p}/b.json"],
        "d/*/*/*/{healthexPatientId}/",
        True,
    ),
    "day before": (
        lambda p, e, t, r: [f"v1/{PROJECT}/dt={t:%Y%m%d}/{p}/b.json"],
        "v1/{projectId}/dt=*/{healthexPatientId}/",
        True,
    ),
    "retrieval before": (
        lambda p, e, t, r: [f"d/{PROJECT}/{r}/{p}/1.json", f"d/{PROJECT}/{r}/{p}/2.json"],
        "d/{projectId}/*/{healthexPatientId}/",
        True,
    ),
    "retrieval below": (
        lambda p, e, t, r: [f"d/{PROJECT}/{p}/{r}/1.json", f"d/{PROJECT}/{p}/{r}/2.json"],
        "d/{projectId}/{healthexPatientId}/",
        False,
    ),
    "marker": (
        lambda p, e, t, r: [f"d/{p}/a.json", f"d/{p}/b.json", f"d/{p}/_DONE"],
        "d/{healthexPatientId}/",
        False,
    ),
    "exact name": (lambda p, e, t, r: [f"d/{PROJECT}/{p}.json"], "d/{projectId}/{healthexPatientId}.json", False),
    "name and time": (
        lambda p, e, t, r: [f"d/patient-{p}_{t:%Y%m%dT%H%M%SZ}.json"],
        "d/patient-{healthexPatientId}_*",
        True,
    ),
    "external": (lambda p, e, t, r: [f"d/{PROJECT}/{e}/bundle.json"], "d/{projectId}/{externalId}/", False),
    "both ids": (
        lambda p, e, t, r: [f"d/{e}/{p}/bundle.json"],
        "d/{externalId}/{healthexPatientId}/",
        False,
    ),
    "id twice": (lambda p, e, t, r: [f"d/{p}/{p}_b.json"], "d/{healthexPatientId}/", False),
    "top": (lambda p, e, t, r: [f"{p}/bundle.json"], "{healthexPatientId}/", False),
}


def account(size: int = 12, seed: int = 0) -> tuple[KnownIds, list[tuple[str, str]]]:
    """Return an account's ids, and its patients as pairs of HealthEx's and the study's own id."""
    drawn = random.Random(seed)
    pairs = [(f"{drawn.getrandbits(32):08x}-{drawn.getrandbits(16):04x}", f"EXT{n:05}x") for n in range(size)]
    ids = KnownIds(
        frozenset(p for p, _ in pairs), frozenset(e for _, e in pairs), frozenset([PROJECT]), frozenset([ORGANIZATION])
    )
    return ids, pairs


def deliveries(name: str, pairs: list[tuple[str, str]], times: int = 3, pause: float = 20) -> list[StoredObject]:
    """Return what lies there after some deliveries to every patient: what is written over is there once."""
    make = LAYOUTS[name][0]
    rows: dict[str, StoredObject] = {}
    for number, (patient, external) in enumerate(pairs):
        for back in range(times, 0, -1):
            moment = NOW - timedelta(days=30 * back, minutes=17 * number)
            for part, key in enumerate(make(patient, external, moment, _uuid(patient, back))):
                size = 0 if key.endswith("_DONE") else 1000 + part
                rows[key] = StoredObject(key, moment + timedelta(seconds=pause * part), size)
    return list(rows.values())


def unrelated(number: int, seed: int = 1) -> Iterator[StoredObject]:
    """Yield objects of somebody else: logs, exports, and ids that are nobody's here."""
    drawn = random.Random(seed)
    for at in range(number):
        moment = NOW - timedelta(seconds=drawn.randrange(10**7))
        key = drawn.choice(
            [
                f"logs/{moment:%Y/%m/%d}/app-{at}.log",
                f"exports/{drawn.getrandbits(64):016x}/part-{at}.parquet",
                f"d/{_uuid(at)}/{drawn.getrandbits(32):08x}-{drawn.getrandbits(16):04x}/bundle.json",
                f"manifests/{at}.jsonl",
            ]
        )
        yield StoredObject(key, moment, drawn.randrange(10**6))
