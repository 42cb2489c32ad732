"""Waiting for deliveries to S3 on the triggerer, for one patient and for many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from airflow_provider_healthex.delivery import CohortExpectation, CohortWait, Expectation
from airflow_provider_healthex.delivery.listing import Look, look
from airflow_provider_healthex.delivery.schedule import PokeSchedule
from airflow_provider_healthex.s3 import TRIGGERER, AsyncBucket, AwsAccess
from airflow_provider_healthex.triggers.arrival import ArrivalTrigger
from airflow_provider_healthex.triggers.deliveries import HealthExDeliveryTrigger

__all__ = ["HealthExCohortArrivalTrigger", "HealthExDataArrivalTrigger", "HealthExDeliveryTrigger"]


class _BucketArrivalTrigger(ArrivalTrigger):
    """A wait in a bucket."""

    def __init__(self, *, bucket_name: str, aws: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bucket_name = bucket_name
        self.aws = AwsAccess(**aws)

    def _storage_arguments(self) -> dict[str, Any]:
        return {"bucket_name": self.bucket_name, "aws": asdict(self.aws)}

    def _open(self) -> AsyncBucket:
        return AsyncBucket(self.bucket_name, self.aws, TRIGGERER)


class HealthExDataArrivalTrigger(_BucketArrivalTrigger):
    """
    Fires when a delivery has arrived, its deadline has passed, or S3 refuses for good. It never raises.

    :param bucket_name: the bucket.
    :param expectation: what counts as the delivery, as :meth:`Expectation.to_dict` gives it.
    :param aws: the parameters of :class:`~airflow_provider_healthex.s3.AwsAccess`. The other parameters are those of
        :class:`~airflow_provider_healthex.triggers.arrival.ArrivalTrigger`.
    """

    expectation: Expectation

    @staticmethod
    def _read(expectation: Mapping[str, Any]) -> Expectation:
        return Expectation.from_dict(expectation)

    def _look(self) -> Look[Any]:
        return look(self.expectation)


class HealthExCohortArrivalTrigger(_BucketArrivalTrigger):
    """
    Fires when every patient's delivery has arrived, the deadline has passed, or S3 refuses for good. It never raises.

    Another triggerer starts with all patients again, with the same baselines and deadline. Its event has
    ``missing``: of each patient, in the expectation's order, whether they are missing, as a hexadecimal number whose
    lowest bit is the first patient's. Ten thousand are 2.5 KB so, in the database.

    :param expectation: what counts as each delivery, as :meth:`CohortExpectation.to_dict` gives it.
    :param enough_at: epoch seconds from which ``least`` patients are enough; None: never before the deadline. The other
        parameters are those of :class:`HealthExDataArrivalTrigger`.
    """

    expectation: CohortExpectation

    def __init__(self, *, least: int | None = None, enough_at: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.least = least
        self.enough_at = enough_at

    @staticmethod
    def _read(expectation: Mapping[str, Any]) -> CohortExpectation:
        return CohortExpectation.from_dict(expectation)

    def _begin(self) -> None:
        self._cohort = CohortWait(self.expectation)

    def _schedule(self) -> PokeSchedule:
        return replace(super()._schedule(), enough_at=self.enough_at)

    def _is_enough(self) -> bool:
        return self.least is not None and len(self._cohort.settled) >= self.least

    def _storage_arguments(self) -> dict[str, Any]:
        return {**super()._storage_arguments(), "least": self.least, "enough_at": self.enough_at}

    def _look(self) -> Look[Any]:
        return self._cohort.look()

    def _event(self, status: str, message: str) -> dict[str, Any]:
        return {**super()._event(status, message), "missing": f"{sum(1 << i for i in self._cohort.missing):x}"}
