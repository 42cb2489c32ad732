"""A DAG whose first try is killed after HealthEx has answered and before the task has ended."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import HealthExUpdatePatientOperator
from airflow_provider_healthex.sandbox import patients


class KilledAfterTheAnswer(HealthExUpdatePatientOperator):
    """Kills its own process, as the kernel does where memory runs out."""

    def execute(self, context: Any) -> dict[str, Any]:
        answer = super().execute(context)
        if context["ti"].try_number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


with DAG("killed", schedule=None):
    KilledAfterTheAnswer(task_id="refresh", patient_id=patients.PARTIAL, retries=2, retry_delay=timedelta(seconds=1))
