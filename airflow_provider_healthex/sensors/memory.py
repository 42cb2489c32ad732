"""The results of a wait's pokes: in the task state store (Airflow 3.3 and later), or nowhere."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_healthex.delivery import ArrivalWait

#: The key in the store.
STORE_KEY = "healthex_arrival"


class PokeMemory:
    """The memory of one wait, in a store."""

    def __init__(self, store: Any, wait: ArrivalWait, log: Any) -> None:
        self._store = store
        self._wait = wait
        self._log = log
        self._is_recalled = False
        # A digest: paths name patients. Another request, path or setting is another wait.
        text = json.dumps(wait.expectation.to_dict(), sort_keys=True)
        self._id = hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def of(cls, context: Context, wait: ArrivalWait, log: Any) -> PokeMemory | None:
        """Return the memory of a wait; None where there is no store, or nothing to remember (S3)."""
        store: Any = context.get("task_state_store")
        return cls(store, wait, log) if store is not None and wait.listing.to_dict() else None

    def recall(self) -> bool:
        """Continue with what an earlier process of this wait kept, once; return whether there was something."""
        if self._is_recalled:
            return False
        record = self._store.get(STORE_KEY)
        self._is_recalled = True
        if not isinstance(record, dict) or record.get("wait") != self._id:
            return False
        self._wait.listing.restore(record["listing"])
        return True

    def keep(self) -> None:
        """Keep what is known by now for the next process."""
        if not self._is_recalled:
            return
        try:
            self._store.set(STORE_KEY, {"wait": self._id, "listing": self._wait.listing.to_dict()})
        except Exception as error:
            self._log.warning(
                "Airflow's task state store did not take what this poke showed (%s): another process would start "
                "without it.",
                type(error).__name__,
            )
