"""Lists the patients who have consented to a project, as input for a cohort operator."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_healthex.arguments import at_least
from airflow_provider_healthex.exceptions import HealthExConfigurationError
from airflow_provider_healthex.hooks.healthex import HealthExHook
from airflow_provider_healthex.links.healthex import HealthExProjectLink
from airflow_provider_healthex.operators.base import HealthExOperator, fail_on_permanent_errors

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg


class HealthExListConsentedPatientsOperator(HealthExOperator):
    """
    Lists the patients who have consented to a project, by id.

    With ``chunk_size`` the output is what a cohort operator is mapped over: ``.expand(patient_ids=listed.output)``.

    :param project_id: the project, default the connection's (templated).
    :param min_days_left: leave out patients whose consent ends within this many days; with 0, those whose consent has
        ended. Patients for whom HealthEx reports no end stay in: a request after the end of a consent is answered
        with ``PATIENT_ACTION_NEEDED``.
    :param chunk_size: patients in a chunk; None: one list. Airflow maps over ``[core] max_map_length`` chunks at
        most (1,024 by default).
    :param healthex_conn_id: the Airflow connection (templated).
    :returns: the ids, sorted, as a list, or with ``chunk_size`` as a list of lists.
    :raises AirflowFailException: from the typed error, for permanent errors.
    :raises HealthExError: for transient errors; Airflow may retry.
    """

    template_fields: Sequence[str] = ("project_id", "healthex_conn_id")
    operator_extra_links = (HealthExProjectLink(),)
    ui_color = "#d9ebf7"

    def __init__(
        self,
        *,
        project_id: str | XComArg | None = None,
        min_days_left: float = 0,
        chunk_size: int | None = None,
        healthex_conn_id: str | XComArg = HealthExHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.check_project_id(project_id)
        self.project_id = project_id
        self.min_days_left = at_least("min_days_left", min_days_left, 0, " days")
        if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
            raise HealthExConfigurationError(f"chunk_size must be a whole number from 1, or None (got {chunk_size!r})")
        self.chunk_size = chunk_size
        self.healthex_conn_id = healthex_conn_id

    def execute(self, context: Context) -> list[str] | list[list[str]]:
        """List them."""
        with fail_on_permanent_errors():
            patients = self.hook.list_consented_patients(project_id=self.resolve_project_id())
        end = datetime.now(timezone.utc) + timedelta(days=self.min_days_left)
        ids = sorted(each.patient_id for each in patients if each.expires_at is None or each.expires_at > end)
        self.log.info(
            "%d of %d consented patients listed. Consent ends within %g days, left out: %d. No end reported: %d",
            len(ids),
            len(patients),
            self.min_days_left,
            len(patients) - len(ids),
            sum(each.expires_at is None for each in patients),
        )
        return ids if self.chunk_size is None else self._chunks(ids, self.chunk_size)

    def _chunks(self, ids: list[str], size: int) -> list[list[str]]:
        chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
        limit = conf.getint("core", "max_map_length", fallback=1024)
        if len(chunks) > limit:
            self.log.warning(
                "Too many chunks: %d, and Airflow maps over at most %d. Set chunk_size to %d or more",
                len(chunks),
                limit,
                -(-len(ids) // limit),
            )
        return chunks
