"""Waiting for deliveries on the triggerer: the sensors' own decision, asynchronously, until the sensor's deadline."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_healthex.delivery import CohortExpectation, CohortWait, Expectation, Waiting
from airflow_provider_healthex.delivery.listing import Look, look
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.s3 import TRIGGERER, AsyncBucket, AwsAccess
from airflow_provider_healthex.triggers.deliveries import HealthExDeliveryTrigger

__all__ = [
    "ARRIVED",
    "BROKEN",
    "REFUSED",
    "TIMED_OUT",
    "HealthExCohortArrivalTrigger",
    "HealthExDataArrivalTrigger",
    "HealthExDeliveryTrigger",
    "waiting_line",
]

#: What an event's ``status`` can be: S3 refused for good, or this code has a defect, which a retry may pass.
ARRIVED, TIMED_OUT, REFUSED, BROKEN = "arrived", "timed_out", "refused", "broken"


class _ArrivalTrigger(BaseTrigger):
    """What the sensors' triggers share: a deadline, one event, and no exception."""

    def __init__(
        self,
        *,
        bucket_name: str,
        expectation: Mapping[str, Any],
        waiting_for: str,
        deadline: float,
        poke_interval: float,
        aws: Mapping[str, Any],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bucket_name = bucket_name
        self.expectation = self._read(expectation)
        self.waiting_for = waiting_for
        self.deadline = deadline
        self.poke_interval = poke_interval
        self.aws = AwsAccess(**aws)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what another triggerer needs to go on."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "bucket_name": self.bucket_name,
                "expectation": self.expectation.to_dict(),
                "waiting_for": self.waiting_for,
                "deadline": self.deadline,
                "poke_interval": self.poke_interval,
                "aws": asdict(self.aws),
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until something is decided."""
        # Raising would come back as a TaskDeferralError, which soft_fail turns into a skip.
        try:
            event = await self._wait()
        except HealthExConfigurationError as error:
            event = {"status": REFUSED, "message": str(error)}
        except Exception as error:
            self.log.exception("The wait broke")
            event = {"status": BROKEN, "message": type(error).__name__}
        yield TriggerEvent(event)

    async def _wait(self) -> dict[str, Any]:
        await asyncio.to_thread(self._begin)
        async with AsyncBucket(self.bucket_name, self.aws, TRIGGERER) as bucket:
            while True:
                # The worker has just looked. Besides, Airflow fails tasks whose triggers fire at once: its scheduler
                # may read the worker's "done, deferred" after the resumed task has started (apache/airflow#72716).
                left = max(0, self.deadline - time.time())
                await asyncio.sleep(min(self.poke_interval, left))
                last = time.time() >= self.deadline
                verdict = await bucket.look(self._look())
                if not isinstance(verdict, Waiting):
                    return self._event(ARRIVED, "")
                self.log.info(waiting_line(self.waiting_for, verdict.reason, self.deadline - time.time()))
                if last:
                    return self._event(TIMED_OUT, verdict.reason)

    @staticmethod
    @abstractmethod
    def _read(expectation: Mapping[str, Any]) -> Any:
        """Read the expectation's JSON form."""

    @abstractmethod
    def _look(self) -> Look[Any]:
        """Return the steps of one look."""

    def _begin(self) -> None:
        """Make ready what is kept between looks."""

    def _event(self, status: str, message: str) -> dict[str, Any]:
        return {"status": status, "message": message}


class HealthExDataArrivalTrigger(_ArrivalTrigger):
    """
    Fires when a delivery has arrived, its deadline has passed, or S3 refuses for good. It never raises.

    :param bucket_name: the bucket.
    :param expectation: what counts as the delivery, as :meth:`Expectation.to_dict` gives it.
    :param waiting_for: what logs call it.
    :param deadline: seconds since the epoch; there is one last look at it. Absolute, so that another triggerer
        goes on where this one ended.
    :param poke_interval: seconds between two looks.
    :param aws: the parameters of :class:`~airflow_provider_healthex.s3.AwsAccess`.
    """

    expectation: Expectation

    @staticmethod
    def _read(expectation: Mapping[str, Any]) -> Expectation:
        return Expectation.from_dict(expectation)

    def _look(self) -> Look[Any]:
        return look(self.expectation)


class HealthExCohortArrivalTrigger(_ArrivalTrigger):
    """
    Fires when every patient's delivery has arrived, the deadline has passed, or S3 refuses for good. It never raises.

    Another triggerer starts with all patients again, with the same baselines and deadline. Its event has
    ``missing``: of each patient, in the expectation's order, whether they are missing, as a hexadecimal number whose
    lowest bit is the first patient's. Ten thousand are 2.5 KB so, in the database.

    :param expectation: what counts as each delivery, as :meth:`CohortExpectation.to_dict` gives it. The other
        parameters are those of :class:`HealthExDataArrivalTrigger`.
    """

    expectation: CohortExpectation

    @staticmethod
    def _read(expectation: Mapping[str, Any]) -> CohortExpectation:
        return CohortExpectation.from_dict(expectation)

    def _begin(self) -> None:
        self._cohort = CohortWait(self.expectation)

    def _look(self) -> Look[Any]:
        return self._cohort.look()

    def _event(self, status: str, message: str) -> dict[str, Any]:
        return {**super()._event(status, message), "missing": f"{sum(1 << i for i in self._cohort.missing):x}"}


def waiting_line(waiting_for: str, reason: str, seconds_left: float | None) -> str:
    """Return a poke's line in the log: what is waited for, why it isn't there, and how long still."""
    line = f"Waiting for {waiting_for}: {reason}"
    if seconds_left is None:
        return line
    minutes, seconds = divmod(max(0, round(seconds_left)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{line}; {hours}:{minutes:02}:{seconds:02} until the timeout"
