"""The provider's metadata, which Airflow reads before it imports anything else of it. Imports nothing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_INTEGRATION = "HealthEx"

#: The Extra's fields in the connection form.
CONN_FIELDS: dict[str, Any] = {
    "project_id": {
        "label": "Project id",
        "description": "The project (study), where a task names none.",
        "schema": {"type": ["string", "null"]},
    },
    "org_id": {
        "label": "Organization id",
        "description": "The value of {orgId} in delivery paths. Empty: taken from the token.",
        "schema": {"type": ["string", "null"]},
    },
    "connect_timeout": {
        "label": "Connect timeout",
        "description": "Seconds for a connection to be made. Empty: 10.",
        "schema": {"type": ["number", "null"], "minimum": 0.1},
    },
    "read_timeout": {
        "label": "Read timeout",
        "description": "Seconds for a request and its whole answer. Empty: 120.",
        "schema": {"type": ["number", "null"], "minimum": 0.1},
    },
    "requests_per_second": {
        "label": "Requests per second",
        "description": "The most requests of each process to HealthEx. Empty: no limit.",
        "schema": {"type": ["number", "null"], "minimum": 0.01},
    },
    "verify": {
        "label": "Verify certificates",
        "description": "true, or the path of a CA bundle. false is accepted for loopback hosts only. Empty: true.",
        "schema": {"type": ["string", "null"]},
    },
    "allow_http": {
        "label": "Allow http://",
        "description": "Send tokens unencrypted to a host that is not loopback. For test systems only.",
        "schema": {"type": ["boolean", "null"]},
    },
}

#: The standard fields in the connection form. Airflow 3.x reads both here, 2.11 reads the hook.
UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["schema", "port"],
    "relabeling": {
        "host": "API base URL",
        "login": "API key",
        "password": "API secret, or the token itself",
    },
    "placeholders": {
        "host": "https://api.healthex.io",
        "login": "empty where the password is the token itself",
        "password": "the API key's secret; without an API key, the token (JWT)",
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, for the entry point ``apache_airflow_provider``."""
    package = __name__.rpartition(".")[0]

    def modules(kind: str, *files: str) -> list[dict[str, Any]]:
        names = [f"{package}.{kind}.{file}" for file in files]
        return [{"integration-name": _INTEGRATION, "python-modules": names}]

    return {
        "package-name": "airflow-provider-healthex",
        "name": "HealthEx",
        "description": "Refresh patients' consented health records and wait until the refreshed data has landed.",
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://docs.healthex.io",
                "tags": ["service"],
            }
        ],
        "operators": modules("operators", "healthex", "sftp"),
        "sensors": modules("sensors", "healthex", "sftp"),
        "hooks": modules("hooks", "healthex"),
        "triggers": modules("triggers", "healthex", "sftp"),
        "connection-types": [
            {
                "connection-type": "healthex",
                "hook-class-name": f"{package}.hooks.healthex.HealthExHook",
                "hook-name": "HealthEx",
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
                "conn-fields": CONN_FIELDS,
            }
        ],
        "extra-links": [f"{package}.links.healthex.HealthExProjectLink"],
    }
