"""HealthEx's API with the token of an Airflow connection."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseHook, mask_secret

from airflow_provider_healthex.client import HealthExClient
from airflow_provider_healthex.client.cancel import CancelEvent
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError
from airflow_provider_healthex.get_provider_info import CONN_FIELDS, UI_FIELD_BEHAVIOUR
from airflow_provider_healthex.hooks.connection import (
    ConnectionNotFound,
    client_settings,
    find_connection,
    project_of,
    unknown_fields,
)

if TYPE_CHECKING:
    from datetime import date

    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_healthex.client import (
        AddPatientsResult,
        ConsentedPatient,
        PatientUpdate,
        PatientUpdateFailure,
    )


class HealthExHook(BaseHook):
    """
    Calls the HealthEx API with the token of an Airflow connection.

    The connection's type is ``healthex``. *Host*: the API's base URL, default ``https://api.healthex.io``. *Login*
    empty: *Password* is the token (JWT). *Login* set: it is the API key, *Password* its secret, and the hook requests
    a token, keeps it for the process and replaces it 120 s before it expires. Each task is a process and requests
    its own token, at an endpoint that is rate limited: with many patients, let one task serve them all.
    *Extra*: ``project_id``, ``org_id``, ``connect_timeout`` (10 s), ``read_timeout`` (120 s),
    ``requests_per_second``, ``verify``, ``allow_http``.

    Every call checks a stored token before anything is sent, and is retried where that is safe: if it never reached
    HealthEx, and after 429 and 503 with Retry-After; reads and token requests also after other 5xx and timeouts. At
    most 5 tries and 300 s of waiting.

    :param healthex_conn_id: the Airflow connection.
    :raises HealthExConfigurationError: by every call, if the connection is unusable.
    :raises HealthExTokenError: by every call, if the stored token has expired or the token request was rejected.
    :raises HealthExConnectionError: by every call, if the request failed and a retry is safe, or Airflow could not
        look up the connection.
    :raises HealthExApiError: by every call, for an error that HealthEx answered; see its subclasses.
    """

    conn_name_attr = "healthex_conn_id"
    default_conn_name = "healthex_default"
    conn_type = "healthex"
    hook_name = "HealthEx"

    def __init__(self, healthex_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.healthex_conn_id = healthex_conn_id
        self._cancelled = CancelEvent()  # the client's, which may be made only after it is set

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the labels of the connection form. For Airflow 2.11: later versions read the provider's metadata."""
        return {key.replace("-", "_"): value for key, value in UI_FIELD_BEHAVIOUR.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the Extra's fields of the connection form. For Airflow 2.11, as above."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import StringField

        return {
            name: StringField(field["label"], widget=BS3TextFieldWidget(), description=field["description"])
            for name, field in CONN_FIELDS.items()
        }

    @cached_property
    def _connection(self) -> Connection:
        return self._find_connection()

    def _find_connection(self, *, retry: bool = True) -> Connection:
        try:
            return find_connection(self.healthex_conn_id, cancelled=self._cancelled, retry=retry)
        except ConnectionNotFound:
            raise HealthExConfigurationError(
                f"There is no Airflow connection {self.healthex_conn_id!r}: create it with type HealthEx. "
                "The password is the token, or login and password are the API key and its secret."
            ) from None

    @cached_property
    def _client(self) -> HealthExClient:
        return HealthExClient(client_settings(self._connection), on_secret=mask_secret, cancelled=self._cancelled)

    def get_conn(self) -> HealthExClient:
        """Return the client of this connection; it holds a connection pool and may be used from several threads."""
        return self._client

    def cancel(self) -> None:
        """End every wait of this hook at once, and send nothing more. For ``on_kill``."""
        self._cancelled.set()

    def resolve_project_id(self, project_id: str | None = None) -> str:
        """
        Return the project of a call: the argument, else the connection's.

        :raises HealthExConfigurationError: neither has one.
        """
        return project_of(self._connection) if project_id in (None, "") else project_id

    def update_patient_data(
        self, patient_id: str, *, project_id: str | None = None, skip_interactive: bool | None = None
    ) -> PatientUpdate:
        """
        Request a refresh of a patient's data. Each accepted call starts, and bills, a retrieval.

        :param patient_id: HealthEx's id of the patient.
        :param project_id: the project, default the connection's.
        :param skip_interactive: ``skipInteractive``: report only consent-related problems as
            ``PATIENT_ACTION_NEEDED`` and skip what needs the patient to log in again (docs.healthex.io). None: not
            sent.
        :raises HealthExUpdateAmbiguousError: nobody knows whether HealthEx accepted it.
        """
        return self._client.update_patient(
            self.resolve_project_id(project_id), patient_id, skip_interactive=skip_interactive
        )

    def update_patients_data(
        self,
        patient_ids: Iterable[str],
        *,
        project_id: str | None = None,
        skip_interactive: bool | None = None,
        max_concurrency: int = 8,
        checkpoint: Callable[[Sequence[str]], None] | None = None,
    ) -> Iterator[PatientUpdate | PatientUpdateFailure]:
        """
        Request a refresh of many patients' data, several at once, and yield each patient's result as it comes.

        A patient's failure is yielded with its error, and the others go on. Patients that are never yielded were not
        requested: no more are after `cancel`, and after errors that every patient would get (401, 403, an expired
        token, a service that is down). Consume it in one thread, to the end; closing it waits for the requests in
        flight.

        :param patient_ids: HealthEx's ids, each requested once.
        :param project_id: the project, default the connection's.
        :param skip_interactive: as `update_patient_data` has it, for all of them.
        :param max_concurrency: requests at once, 1 to 32, over one connection pool and with one token. The
            connection's ``requests_per_second`` is a limit for all together, and a 429 slows all of them down.
        :param checkpoint: is called in the consuming thread with all patients whose request may be in flight, just
            before one is added and after one has left. No request is sent before it returns, nor if it raises.
        """
        return self._client.update_patients(
            self.resolve_project_id(project_id),
            patient_ids,
            skip_interactive=skip_interactive,
            max_concurrency=max_concurrency,
            checkpoint=checkpoint,
        )

    def add_patients(
        self,
        patients: Sequence[Mapping[str, Any]],
        *,
        project_id: str | None = None,
        suppress_notifications: bool | None = None,
    ) -> AddPatientsResult:
        """
        Add or update patients of a project; safe to repeat (official guide).

        A hook call and no operator: names and birth dates must not become operator arguments, which Airflow stores
        and shows. Call it inside a ``@task`` that reads them where they live.

        :param patients: HealthEx's fields, e.g. ``firstName``, ``lastName``, ``contactPreference``,
            ``languagePreference``, ``externalId`` (docs.healthex.io).
        :param project_id: the project, default the connection's. It must be active.
        :param suppress_notifications: ``suppressNotifications``; None: not sent.
        :returns: the result for each; patients may fail although the call succeeds.
        """
        return self._client.add_patients(
            self.resolve_project_id(project_id), patients, suppress_notifications=suppress_notifications
        )

    def list_consented_patients(self, *, project_id: str | None = None) -> list[ConsentedPatient]:
        """
        Return the patients who have consented to the project.

        :param project_id: the project, default the connection's.
        """
        return self._client.list_consented_patients(self.resolve_project_id(project_id))

    def create_patient_link(self, external_id: str, *, project_id: str | None = None) -> str:
        """
        Return the signed link by which a patient enters HealthEx; safe to repeat.

        A hook call and no operator: the link lets its holder act as the patient. Send it inside the ``@task`` that
        requested it; never return, log or store it.

        :param external_id: your own id of the patient.
        :param project_id: the project, default the connection's.
        """
        return self._client.create_patient_link(self.resolve_project_id(project_id), external_id)

    def usage_summary(self, start: date | str, end: date | str) -> dict[str, Any]:
        """
        Return what HealthEx counted as used, for reconciling. Needs an ``ORG_ADMIN`` token.

        :param start: the first day.
        :param end: the last day.
        """
        return self._client.usage_summary(start, end)

    def test_connection(self) -> tuple[bool, str]:
        """Check the token and read ``/FHIR/R4/metadata``, once; no patient is touched. For *Test* in UI and CLI."""
        try:
            connection = self._find_connection(retry=False)
            settings = client_settings(connection)
            with HealthExClient(settings, on_secret=mask_secret, cancelled=self._cancelled, tries=1) as client:
                client.check_token()
                client.capability_statement()
                organization = client.organization_id
        except HealthExError as error:
            return False, self._without_made_up_id(str(error))
        except Exception as error:
            return False, f"The connection could not be tested ({type(error).__name__})"
        message = "HealthEx answered" + (f" for organization {organization}" if organization else "")
        return True, ". ".join((message, *unknown_fields(connection)))

    def _without_made_up_id(self, text: str) -> str:
        """Leave out the connection's id if it is one that the UI's Test button made up."""
        name = self.healthex_conn_id
        if re.fullmatch("[A-Za-z0-9]{8}", name) and f"AIRFLOW_CONN_{name.upper()}" in os.environ:
            return text.replace(f" {name!r}", "")
        return text
