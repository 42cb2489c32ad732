"""The calls of HealthEx's API that this package makes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import date, datetime
from functools import partial
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from airflow_provider_healthex.client.bulk import Checkpoint, check_concurrency, checkpointed, distinct, each_update
from airflow_provider_healthex.client.calls import LONG, Call, RetryEffect, flag, identifier, json_body, text
from airflow_provider_healthex.client.cancel import CancelEvent
from airflow_provider_healthex.client.classify import unreadable
from airflow_provider_healthex.client.models import (
    CONSENT_TYPE,
    AddPatientsResult,
    ConsentedPatient,
    PatientUpdate,
    PatientUpdateFailure,
    consented_patients,
    harmless,
    parse_json,
)
from airflow_provider_healthex.client.redaction import Secrets, clean
from airflow_provider_healthex.client.sender import InFlight, Sender
from airflow_provider_healthex.client.settings import ClientSettings
from airflow_provider_healthex.client.token import claims, organization, token_source
from airflow_provider_healthex.exceptions import HealthExConfigurationError

log = logging.getLogger(__name__)

_T = TypeVar("_T", dict[str, Any], list[Any])

#: Fields of a patient that are no personal data: redacting their values would only hide words of an error.
_IMPERSONAL = ("contactPreference", "languagePreference", "targetedFacilities", "allowOnlyTargetedFacilities")


class HealthExClient:
    """
    HealthEx's API with one token; may be used from several threads.

    Every call raises `HealthExConfigurationError`, `HealthExTokenError`, `HealthExConnectionError` and
    `HealthExApiError` as `exceptions` describes them. It is retried if it was not sent (except for certificate
    errors), and after 429 and 503 with Retry-After; GETs and token requests also after any 5xx and timeouts; at most
    5 tries and 300 s of waiting.

    :param on_secret: receives each token and each patient's link as soon as it is known.
    :param cancelled: once it is set, nothing more is sent and every wait ends; by default one of its own.
    :param tries: at most, where a retry is safe; by default 5.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        on_secret: Callable[[str], None] | None = None,
        cancelled: CancelEvent | None = None,
        tries: int | None = None,
    ) -> None:
        self._settings = settings
        self._secrets = Secrets(on_secret)
        self.cancelled = cancelled or CancelEvent()
        self._sender = Sender(settings, self._secrets, self.cancelled, tries)
        self._tokens = token_source(self._sender)

    def __repr__(self) -> str:
        return f"HealthExClient({self._settings.base_url!r})"

    def __enter__(self) -> HealthExClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._sender.transport.close()

    @property
    def organization_id(self) -> str | None:
        """The settings' ``org_id``, else the token's ``organizationId`` claim; may request a token."""
        return self._settings.org_id or organization(self._tokens.current())

    def check_token(self) -> None:
        """
        Check that there is a usable token: a stored one locally, another by requesting it.

        :raises HealthExTokenError: it has expired or isn't valid yet, or the token request was rejected.
        """
        self._tokens.current()

    def token_claims(self) -> Mapping[str, Any]:
        """Return the token's claims, unverified; a token that is no JWT has none. May request a token."""
        return claims(self._tokens.current())

    def update_patient(
        self,
        project_id: str,
        patient_id: str,
        *,
        skip_interactive: bool | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> PatientUpdate:
        """
        Request a refresh of a patient's data. HealthEx bills retrievals and has no idempotency key.

        :param skip_interactive: ``skipInteractive``; None: not sent.
        :param checkpoint: is called with the patient just before each try is sent, and with no patient after a try
            that was rejected; nothing is sent if it raises.
        :raises HealthExUpdateAmbiguousError: it was sent, and nobody knows whether it was accepted.
        """
        identifier("project_id", project_id)
        identifier("patient_id", patient_id)
        body = json_body(flag("skipInteractive", skip_interactive))
        in_flight = partial(checkpointed, patient_id, checkpoint) if checkpoint else nullcontext
        return self._update(project_id, body, patient_id, self.cancelled, in_flight)

    def update_patients(
        self,
        project_id: str,
        patient_ids: Iterable[str],
        *,
        skip_interactive: bool | None = None,
        max_concurrency: int = 8,
        checkpoint: Checkpoint | None = None,
    ) -> Iterator[PatientUpdate | PatientUpdateFailure]:
        """
        Request a refresh of many patients' data, several at once, and yield the result of each as it comes.

        A patient's failure is yielded, and the others go on. No more patients are requested, and those in flight are
        yielded last, once it is cancelled, or after an error that every patient would get: 401, 403, an expired
        token, a Retry-After of more than 300 s, or `bulk.FAILURES_IN_A_ROW` patients in a row without a readable
        answer. Patients that are never yielded were not requested. Closing the iterator ends waits at once, and waits
        for the requests in flight. 429 and 503 with Retry-After slow all of them down.

        :param patient_ids: HealthEx's ids, each requested once; all are checked before any is requested.
        :param max_concurrency: requests at once, 1 to 32.
        :param checkpoint: is called in the caller's thread, after whatever was yielded before, with all patients
            whose request may be in flight. A patient is added after every wait (for the rate limit, a token or a
            retry), and is not requested before the call returns. If its try was rejected, it is left out of the next
            call, until it is retried. If the call raises, no more patients are requested, those in flight are
            yielded, and then its error is raised.
        :raises HealthExConfigurationError: at once, for an unusable argument.
        :raises HealthExTokenError: at once, if there is no usable token.
        """
        identifier("project_id", project_id)
        body = json_body(flag("skipInteractive", skip_interactive))
        check_concurrency(max_concurrency)
        ids = distinct(patient_ids)
        # Before the threads need it: one token is requested.
        self.check_token()
        update = partial(self._update, project_id, body)
        return each_update(project_id, ids, update, max_concurrency, self.cancelled, checkpoint)

    def _update(
        self, project_id: str, body: bytes, patient_id: str, cancelled: CancelEvent, in_flight: InFlight
    ) -> PatientUpdate:
        call = Call(
            "POST",
            "/v1/projects/{projectId}/recruitment/identified-patients/{patientId}/$updateData",
            ids={"projectId": project_id, "patientId": patient_id},
            subject=f"Update of patient {patient_id!r}",
            retry_effect=RetryEffect.BILLED,
            body=body,
            first_words={404: f"Patient {patient_id!r} not found"},
            hints={
                404: "The project is unknown or not accessible with this token, or the patient was never added to "
                "it: that gives this error too, and Add/Update Patient is safe to repeat."
            },
        )
        # Before it is sent: nothing may fail between an accepted update and its caller.
        organization_id = self.organization_id
        answer = self._sender.send(call, self._tokens, cancelled=cancelled, in_flight=in_flight)
        document = parse_json(answer.body)
        update = PatientUpdate.from_answer(
            document,
            project_id=project_id,
            patient_id=patient_id,
            organization_id=organization_id,
            requested_at=answer.requested_at,
        )
        if update is None:
            message = harmless(document.get("message")) if isinstance(document, dict) else None
            said = clean(message or "nothing readable", self._secrets)
            raise unreadable(call, answer, f"the answer has neither of the two documented messages: {said}")
        return update

    def add_patients(
        self,
        project_id: str,
        patients: Sequence[Mapping[str, Any]],
        *,
        suppress_notifications: bool | None = None,
    ) -> AddPatientsResult:
        """
        Add or update patients; safe to repeat (official guide). HealthEx checks the fields.

        :param project_id: an active project.
        :param patients: HealthEx's fields, dates as ISO text.
        :param suppress_notifications: ``suppressNotifications``; None: not sent.
        """
        rows = _patients(patients)
        personal = [[*_personal(row)] for row in rows]
        call = Call(
            "POST",
            "/v1/projects/{projectId}/patients",
            subject="Adding patients",
            ids={"projectId": identifier("project_id", project_id)},
            retry_effect=RetryEffect.DOCUMENTED_IDEMPOTENT,
            body=json_body({"patients": rows, **flag("suppressNotifications", suppress_notifications)}),
            private=tuple({value for each in personal for value in each}),
            limit=LONG,
        )
        answer = self._document(call, dict)
        return AddPatientsResult.from_answer(answer, secrets=self._secrets, personal=personal)

    def list_consented_patients(self, project_id: str) -> list[ConsentedPatient]:
        """
        Return the patients who have consented to a project; their consents may have expired since.

        The documented source of ids for a refresh. HealthEx documents no pages: up to 32 MiB are read.
        """
        call = Call(
            "POST",
            "/v1/consents",
            subject="Listing consented patients",
            ids={"projectId": identifier("project_id", project_id)},
            retry_effect=RetryEffect.DOCUMENTED_IDEMPOTENT,
            body=json_body({"consentTypes": [CONSENT_TYPE], "studyId": project_id}),
            limit=LONG,
        )
        patients, left_out = consented_patients(self._document(call, list), project_id)
        if left_out:
            log.warning(
                "%d of the consented patients left out: their ids are not made of A-Z a-z 0-9 _ . : - (project %r)",
                left_out,
                project_id,
            )
        return patients

    def create_patient_link(self, project_id: str, external_id: str) -> str:
        """
        Return the signed link by which a patient enters HealthEx; safe to repeat.

        The link lets its holder act as the patient: never log or store it.

        :param external_id: your own id of the patient.
        """
        call = Call(
            "POST",
            "/v1/projects/{projectId}/link",
            subject="Creating a patient's link",
            ids={"projectId": identifier("project_id", project_id)},
            retry_effect=RetryEffect.DOCUMENTED_IDEMPOTENT,
            body=json_body({"externalId": text("external_id", external_id)}),
            private=(external_id,),
            accept="application/json, text/plain",
        )
        answer = self._sender.send(call, self._tokens)
        link = _link(answer.body)
        if link is None:
            raise unreadable(call, answer, "the answer is no link")
        self._secrets.mask(link)
        return link

    def usage_summary(self, start: date | str, end: date | str) -> dict[str, Any]:
        """
        Return what HealthEx counted as used. Needs an ``ORG_ADMIN`` token.

        The parameters' names, ``startDate`` and ``endDate``, are an assumption: no public documentation has them.

        :param start: a date or datetime, or either as ISO text; so is the end.
        """
        call = Call(
            "GET",
            "/v1/usage/summary",
            subject="Usage summary",
            query={"startDate": _iso("start", start), "endDate": _iso("end", end)},
            hints={403: "The token must belong to an ORG_ADMIN."},
        )
        return self._document(call, dict)

    def capability_statement(self) -> dict[str, Any]:
        """Return the FHIR server's CapabilityStatement: a cheap test of host and token that touches no patient."""
        hints = {404: "Check the host."}
        call = Call("GET", "/FHIR/R4/metadata", subject="Capability statement", limit=LONG, hints=hints)
        return self._document(call, dict)

    def _document(self, call: Call, kind: type[_T]) -> _T:
        answer = self._sender.send(call, self._tokens)
        document = parse_json(answer.body)
        if not isinstance(document, kind):
            raise unreadable(call, answer, f"the answer is no JSON {'array' if kind is list else 'object'}")
        return document


def _patients(patients: object) -> list[dict[str, Any]]:
    rows = patients if isinstance(patients, Sequence) and not isinstance(patients, (str, bytes)) else ()
    if not rows:
        raise HealthExConfigurationError("patients must be a list of at least one mapping")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise HealthExConfigurationError(f"patients[{index}] must be a mapping (got {type(row).__name__})")
    return [dict(row) for row in rows]


def _personal(value: object) -> Iterator[str]:
    """Yield every value of a patient that no error may show, however it is nested."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _IMPERSONAL:
                yield from _personal(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _personal(inner)
    elif isinstance(value, (str, int)) and not isinstance(value, bool):
        yield str(value)


def _link(body: bytes) -> str | None:
    text = body.decode("utf-8", "replace").strip()
    unquoted = parse_json(body) if text.startswith('"') else text
    if not isinstance(unquoted, str) or not unquoted.isprintable() or " " in unquoted or "\ufffd" in unquoted:
        return None
    try:
        parts = urlsplit(unquoted)
    except ValueError:
        return None
    return unquoted if parts.scheme in ("http", "https") and parts.hostname else None


def _iso(name: str, value: object) -> str:
    if isinstance(value, date):  # a datetime is one too
        return value.isoformat()
    try:
        if isinstance(value, str):
            datetime.fromisoformat(value)
            return value
    except ValueError:
        pass
    raise HealthExConfigurationError(f"{name} must be a date, a datetime or ISO text (got {value!r})")
