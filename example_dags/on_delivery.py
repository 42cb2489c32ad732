"""
Process every delivery of HealthEx: of a patient who shares data unasked, and of your own refreshes.

A watcher polls the bucket on the triggerer, and each event of its asset starts a run. Needs Airflow 3.0. On 3.3 the
watcher stores which deliveries it has announced, so that a restart neither repeats nor misses one. How to combine this
with DAGs that request refreshes: docs/event-driven.md.
"""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import Any

from airflow.providers.common.compat.sdk import Asset, dag, task

from airflow_provider_healthex.triggers.healthex import HealthExDeliveryTrigger

try:
    from airflow.sdk import AssetWatcher
except ImportError:  # Airflow 2.11 has no watchers
    AssetWatcher = None  # type: ignore[assignment, misc]

if AssetWatcher is not None:
    # A watcher has no runs, and so no parameters: its arguments are fixed when the DAG is parsed.
    trigger = HealthExDeliveryTrigger(
        bucket_name=os.environ.get("HEALTHEX_EXAMPLE_BUCKET", "healthex-deliveries"),
        bucket_key="d/{projectId}/{healthexPatientId}/",
        poke_interval=float(os.environ.get("HEALTHEX_EXAMPLE_POKE_INTERVAL", 120)),
        quiet_period=float(os.environ.get("HEALTHEX_EXAMPLE_QUIET_PERIOD", 300)),
    )
    deliveries = Asset("healthex_deliveries", watchers=[AssetWatcher(name="healthex_bucket", trigger=trigger)])

    @dag(
        schedule=[deliveries],
        start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
        catchup=False,
        tags=["healthex"],
        doc_md=__doc__,
    )
    def on_delivery() -> None:
        @task
        def process(triggering_asset_events: Any = None) -> list[str]:
            """Process each patient's delivery once: one run may have several events."""
            newest: dict[tuple[str, str], dict[str, Any]] = {}
            for events in triggering_asset_events.values():
                for event in events:
                    for delivery in event.extra["payload"]["deliveries"]:
                        newest[delivery["project_id"], delivery["patient_id"]] = delivery
            for delivery in newest.values():
                print(f"Delivered: {delivery['patient_id']}, {delivery['object_count']} object(s)")
            return sorted(patient_id for _, patient_id in newest)

        process()

    on_delivery()
