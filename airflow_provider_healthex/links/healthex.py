"""Links on a task's page in the Airflow UI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey

#: The web app's address, as seen in public material. That of a sandbox organization is unknown.
PROJECT_URL = "https://app.healthex.io/#/projects/{project_id}/patient-management"


class HealthExProjectLink(BaseOperatorLink):
    """Opens the project's patient list in HealthEx's web app."""

    name = "HealthEx project"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL: of the project in the task's result, else of the argument; empty without either."""
        result: Any = XCom.get_value(ti_key=ti_key, key="return_value")
        project_id = result.get("project_id") if isinstance(result, dict) else None
        project_id = project_id or getattr(operator, "project_id", None)
        if not isinstance(project_id, str) or not project_id or "{" in project_id:
            return ""
        return PROJECT_URL.format(project_id=quote(project_id, safe=""))
