"""A HealthEx-like API with deliveries on this machine, for demos and for tests (extra ``sandbox``)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from airflow_provider_healthex.sandbox.server import Sandbox

__all__ = ["Sandbox"]


def __getattr__(name: str) -> object:
    # Flask and moto take a second to import: only a sandbox that starts pays for them.
    if name == "Sandbox":
        from airflow_provider_healthex.sandbox.server import Sandbox

        return Sandbox
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
