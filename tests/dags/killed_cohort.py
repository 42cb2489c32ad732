"""A DAG that asks for a cohort, and says which process does it, so that a test can kill it in between."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_healthex.operators.healthex import HealthExUpdateCohortOperator


class SaysItsProcess(HealthExUpdateCohortOperator):
    """Writes the ids of its process and of the worker that started it to a file."""

    def execute(self, context: Any) -> dict[str, Any]:
        if context["ti"].try_number == 1:
            file = Path(os.environ["AIRFLOW_HOME"]) / "killed_cohort.json"
            file.with_suffix(".part").write_text(json.dumps([os.getppid(), os.getpid()]))
            file.with_suffix(".part").rename(file)
        return super().execute(context)


with DAG("killed_cohort", schedule=None, render_template_as_native_obj=True):
    SaysItsProcess(
        task_id="refresh",
        patient_ids="{{ dag_run.conf['patient_ids'] }}",
        max_failures=0.2,
        retries=1,
        retry_delay=timedelta(seconds=1),
    )
