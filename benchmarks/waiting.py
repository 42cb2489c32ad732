"""The cost of a poke for many patients: a key sensor for each, and one listing for all."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest import mock

from benchmarks.bucket import NAME, ListedBucket
from benchmarks.chart import chart
from benchmarks.report import Report
from benchmarks.servers import patient_ids

MISSING = (1000, 100, 10, 1)

#: Objects a patient, and the latency of a request in seconds.
BUCKETS = ((100, 0.0), (10, 0.0), (1, 0.0), (100, 0.08))

#: Key sensors that are poked; the numbers of more are reckoned.
SAMPLE = 100
AT_ONCE = 16

#: The least of so many times counts.
ROUNDS = 3
#: Seconds of rounds, at the least.
LEAST_SECONDS = 0.2

#: With all patients missing and 100 objects each: how many times as fast as key sensors one after the other.
TARGETS = {0.0: 3, 0.08: 10}

_PATH = "d/{projectId}/{healthexPatientId}/"
_PREFIX = "d/project-bench/{}/"

_NOTES = (
    "S3KeySensor: wildcard, `check_fn` by LastModified. Each was poked once before, so that its client is there.",
    "In reschedule mode each of its pokes makes a new client besides, and takes a worker's start.",
    f"At most {SAMPLE} key sensors are poked; the numbers of more are reckoned from theirs. At once: in threads.",
    "Ours: the cohort sensor's poke on a worker. The first one doesn't know the bucket; the others saw it before.",
    "The server answers from memory, in the same process as its clients. With S3, requests have a latency.",
)


@dataclass(frozen=True)
class Cost:
    """What some pokes cost."""

    lists: int
    rows: int
    seconds: float

    def times(self, factor: float) -> Cost:
        """Return the cost of so many times as many pokes."""
        return Cost(round(self.lists * factor), round(self.rows * factor), self.seconds * factor)


@dataclass(frozen=True)
class Measured:
    """
    One line of the table.

    :param one_by_one: key sensors, one after the other; None for our first poke.
    :param at_once: key sensors, 16 at once.
    """

    objects: int
    latency: float
    missing: int
    ours: Cost
    one_by_one: Cost | None = None
    at_once: Cost | None = None

    @property
    def gain(self) -> float:
        """How many times as fast as key sensors one after the other."""
        return self.one_by_one.seconds / self.ours.seconds if self.one_by_one else 1.0

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        latency = f", {self.latency * 1000:g} ms a request" if self.latency else ""
        which = f"{self.missing:,} missing" if self.one_by_one else "first poke"
        cells = [f"{self.objects} objects each{latency}: {which}"]
        for cost in (self.one_by_one, self.ours):
            cells += [f"{cost.lists:,}", f"{cost.rows:,}"] if cost else ["", ""]
        seconds = [cost.seconds if cost else None for cost in (self.one_by_one, self.at_once, self.ours)]
        return (*cells, *("" if each is None else f"{each:.3f}" for each in seconds))


def run(
    patients: int = 1000,
    missing: Sequence[int] = MISSING,
    buckets: Sequence[tuple[int, float]] = BUCKETS,
) -> Report:
    """Poke once for each number of patients still missing, in each bucket."""
    measured = [one for objects, latency in buckets for one in _measure(patients, objects, latency, missing)]
    compared = [one for one in measured if one.one_by_one]
    slowest = min(one.gain for one in compared)
    full = {one.latency: one.gain for one in compared if one.missing == max(missing) and one.objects == buckets[0][0]}
    gains = [
        f"{gain:.1f} x" + (f" at {latency * 1000:g} ms a request" if latency else "") for latency, gain in full.items()
    ]
    return Report(
        name="waiting",
        question=f"One poke for those of {patients:,} patients who are missing.",
        ratio=f"{' and '.join(gains)} as fast as S3KeySensor's pokes with all missing, {slowest:.1f} x at the least",
        target="3 x and 10 x with all missing, and at least 1 x",
        met=slowest >= 1 and all(gain >= TARGETS.get(latency, 1) for latency, gain in full.items()),
        columns=(
            *("patients", "LISTs: S3KeySensor", "rows", "LISTs: ours", "rows"),
            *("s: one by one", f"{AT_ONCE} at once", "ours"),
        ),
        rows=[one.row() for one in measured],
        notes=_NOTES,
        chart=draw([one for one in compared if one.objects == buckets[0][0]]),
    )


def draw(measured: Sequence[Measured]) -> str:
    """Draw the seconds over the number of missing patients."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for one in measured:
        title = f"{one.latency * 1000:g} ms latency" if one.latency else "Without latency"
        lines = panels.setdefault(f"{title}, {one.objects} objects a patient", {})
        costs = {
            "S3KeySensor, one after the other": one.one_by_one,
            f"S3KeySensor, {AT_ONCE} at once": one.at_once,
            "HealthExCohortArrivalSensor": one.ours,
        }
        for name, cost in costs.items():
            if cost:
                lines.setdefault(name, []).append((one.missing, cost.seconds))
    return chart(panels, "missing patients", "seconds a poke")


def _measure(patients: int, objects: int, latency: float, missing: Sequence[int]) -> Iterator[Measured]:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    requested_at, old, fresh = now - timedelta(hours=1), now - timedelta(days=30), now - timedelta(minutes=30)
    keys = {
        patient_id: [f"{_PREFIX.format(patient_id)}bundle-{number:04}.json" for number in range(objects)]
        for patient_id in patient_ids(patients)
    }
    listed = {key: old for names in keys.values() for key in names}
    with (
        ListedBucket(listed, latency) as bucket,
        mock.patch.dict(os.environ, {"AIRFLOW_CONN_AWS_DEFAULT": json.dumps(bucket.connection())}),
    ):
        poke = cohort_poke(list(keys), requested_at)
        yield Measured(objects, latency, patients, cost_of(bucket, poke, rounds=1))
        # Those who are still missing are anywhere among the others.
        waited_for = random.Random(7).sample(list(keys), patients)
        for count in missing:
            arrived, waited_for = waited_for[: len(waited_for) - count], waited_for[len(waited_for) - count :]
            if arrived:
                bucket.modify((key for patient_id in arrived for key in keys[patient_id]), fresh)
                poke()  # which finds them; the next one lists the others alone
            sensors = key_sensors(waited_for[:SAMPLE], requested_at)
            share, rounds = count / len(sensors), 1 if latency else ROUNDS
            one_by_one, at_once = (cost.times(share) for cost in sensor_costs(bucket, sensors, rounds))
            ours = cost_of(bucket, poke, ROUNDS)
            yield Measured(objects, latency, count, ours, one_by_one, at_once)


def cost_of(bucket: ListedBucket, poke: Callable[[], object], rounds: int) -> Cost:
    """Return the cost of the fastest of some rounds; of more where a round takes milliseconds, which vary."""
    costs: list[Cost] = []
    while len(costs) < rounds or (rounds > 1 and sum(cost.seconds for cost in costs) < LEAST_SECONDS):
        lists, rows, began = bucket.requests, bucket.rows, time.perf_counter()
        poke()
        costs.append(Cost(bucket.requests - lists, bucket.rows - rows, time.perf_counter() - began))
    return min(costs, key=lambda cost: cost.seconds)


def sensor_costs(bucket: ListedBucket, sensors: Sequence[Any], rounds: int) -> tuple[Cost, Cost]:
    """Return the cost of key sensors' pokes one after the other, and at once."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        at_once = cost_of(bucket, lambda: list(threads.map(lambda sensor: sensor.poke({}), sensors)), rounds)
    return cost_of(bucket, lambda: [sensor.poke({}) for sensor in sensors], rounds), at_once


def key_sensors(patients: Sequence[str], requested_at: datetime) -> list[Any]:
    """Return a key sensor for each patient, as one would write it without us, that was poked once."""
    from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor

    def is_fresh(files: list[dict[str, Any]], **context: Any) -> bool:
        return any(file["LastModified"] >= requested_at for file in files)

    sensors = [
        S3KeySensor(
            task_id=patient_id,
            bucket_name=NAME,
            bucket_key=f"{_PREFIX.format(patient_id)}*",
            wildcard_match=True,
            check_fn=is_fresh,
            metadata_keys=["LastModified"],
        )
        for patient_id in patients
    ]
    for sensor in sensors:
        sensor.poke({})
    return sensors


def cohort_poke(patients: Sequence[str], requested_at: datetime) -> Callable[[], object]:
    """Return what our cohort sensor does for a poke, in each of its modes; it remembers who arrived."""
    from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient
    from airflow_provider_healthex.storage.s3 import AwsAccess, Bucket

    expectation = Expectation(
        (_PATH,),
        {"projectId": "project-bench"},
        tuple(Patient(patient_id, requested_at) for patient_id in patients),
        ArrivalRule(),
    )
    bucket = Bucket(NAME, AwsAccess("aws_default"))
    wait = ArrivalWait(expectation, bucket.listing)
    return lambda: bucket.run(wait.poke())
