"""The calls of HealthEx's API that this package makes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timezone
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_healthex.client.calls import LONG, Call, Repeat, flag, identifier, json_body, text
from airflow_provider_healthex.client.headers import TOLERATED_SKEW, UNBELIEVABLE_SKEW, skew
from airflow_provider_healthex.client.bulk import Around, Checkpoint, checkpointed, distinct, each_update
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
from airflow_provider_healthex.client.rate_limit import Stop, rate_limit_for
from airflow_provider_healthex.client.retries import Failure, repeated
from airflow_provider_healthex.client.settings import ApiKey, ClientSettings
from airflow_provider_healthex.client.redaction import clean
from airflow_provider_healthex.client.token import Minted, check, mint_for, minted, organization
from airflow_provider_healthex.client.transport import Answer, Transport
from airflow_provider_healthex.client.classify import judge, requested_at, unreadable
from airflow_provider_healthex.exceptions import (
    HealthExApiError,
    HealthExAuthenticationError,
    HealthExConfigurationError,
    HealthExConnectionError,
    HealthExError,
    HealthExRateLimitError,
    HealthExTokenError,
)

log = logging.getLogger(__name__)

#: What of a patient is no personal data, and would only blank out words of an error.
_IMPERSONAL = frozenset(
    {"contactPreference", "languagePreference", "targetedFacilities", "allowOnlyTargetedFacilities"}
)


def _tell_nobody(secret: str) -> None:
    """Stand in for Airflow's ``mask_secret``."""


class HealthExClient:
    """
    HealthEx's API with one token; may be used from several threads.

    Every call raises `HealthExConfigurationError`, `HealthExTokenError`, `HealthExConnectionError` and
    `HealthExApiError` as `exceptions` describes them. Repeated by itself is what never reached the service (but for
    certificate errors), 429, and 503 with Retry-After; GETs and minting also on any 5xx and timeouts; at most
    5 tries and 300 s of waiting.

    :param settings: where HealthEx is and how to sign in.
    :param on_secret: is given each token and each patient's link as soon as it is known.
    :param stop: once set, nothing more is sent and every wait ends; by default one of its own.
    :param tries: how often a request is tried, where a retry is safe; by default 5 times.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        on_secret: Callable[[str], None] = _tell_nobody,
        stop: Stop | None = None,
        tries: int | None = None,
    ) -> None:
        self._settings = settings
        self._transport = Transport(settings)
        self._pacer = rate_limit_for((settings.base_url, settings.credentials))
        self._on_secret = on_secret
        self._secrets: set[str] = set()
        credentials = settings.credentials
        if isinstance(credentials, ApiKey):
            self._mint = mint_for(settings.base_url, credentials)
        else:
            self._announce(credentials.token)
        self.stop = stop or Stop()
        self._tries = tries
        self._clocks_differ = False

    def __repr__(self) -> str:
        return f"HealthExClient({self._settings.base_url!r})"

    def __enter__(self) -> HealthExClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client may still be used, and opens new ones."""
        self._transport.close()

    @property
    def organization_id(self) -> str | None:
        """The settings' ``org_id``, else the token's ``organizationId`` claim; may mint a token."""
        return self._settings.org_id or organization(self._token())

    def check_token(self) -> None:
        """
        Check that there is a token to ask with: a stored one locally, a minted one by minting it.

        :raises HealthExTokenError: it has expired, isn't valid yet, or minting was refused.
        """
        self._token()

    def update_patient(
        self,
        project_id: str,
        patient_id: str,
        *,
        skip_interactive: bool | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> PatientUpdate:
        """
        Ask for a refresh of a patient's data. HealthEx bills retrievals and has no idempotency key.

        :param project_id: HealthEx's id of the project.
        :param patient_id: HealthEx's id of the patient.
        :param skip_interactive: ``skipInteractive``; None: not sent.
        :param checkpoint: is called with the patient just before each try is sent, and with nobody after a try that
            was surely rejected; nothing is sent if it raises.
        :raises HealthExUpdateAmbiguousError: it was sent, and nobody knows whether it was accepted.
        """
        around = checkpointed(patient_id, checkpoint) if checkpoint else None
        return self._update(project_id, patient_id, skip_interactive, self.stop, around)

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
        Ask for a refresh of many patients' data, several at once, and yield what came of each as it comes.

        A patient's failure is yielded, and the others go on. Nobody more is asked, and those in flight are the last
        to be yielded, after what asking on can't mend: 401, 403, a token that has expired, a Retry-After beyond our
        patience, or `cohort.GIVE_UP_AFTER` patients in a row for whom no readable answer came. The same once `stop`
        is set. Whoever isn't yielded by the end was not asked. Closing the iterator ends waits at once and waits for
        the requests in flight.

        429 and 503 with Retry-After slow all of them down; ``requests_per_second`` is a limit for all together.

        :param project_id: HealthEx's id of the project.
        :param patient_ids: HealthEx's ids; who is named twice is asked once. All are checked before any is asked.
        :param skip_interactive: ``skipInteractive``; None: not sent.
        :param max_concurrency: requests at once, 1 to 32.
        :param checkpoint: is called in the caller's thread, after whatever was yielded before, with all patients
            whose request may be on its way. A patient is added just before the request is sent, after every wait
            for a turn, a token or a retry, and is not requested before the call returns. Patients whose try was
            surely rejected are left out of the next call, until they are retried. If it raises, no more patients are
            requested, those in flight are yielded, and then its error is raised.
        :raises HealthExConfigurationError: at once, for an argument that can't be used.
        :raises HealthExTokenError: at once, where there is no token to ask with.
        """
        identifier("project_id", project_id)
        flag("skipInteractive", skip_interactive)
        ids = distinct(patient_ids, max_concurrency)
        # Before any thread needs it: one mints.
        self._token()

        def request(patient_id: str, stop: Stop, around: Around) -> PatientUpdate | PatientUpdateFailure:
            try:
                return self._update(project_id, patient_id, skip_interactive, stop, around)
            except HealthExError as error:
                return PatientUpdateFailure(project_id, patient_id, error)

        return each_update(ids, request, max_concurrency, self.stop, checkpoint)

    def _update(
        self,
        project_id: str,
        patient_id: str,
        skip_interactive: bool | None,
        stop: threading.Event,
        around: Around | None,
    ) -> PatientUpdate:
        call = Call(
            "POST",
            "/v1/projects/{projectId}/recruitment/identified-patients/{patientId}/$updateData",
            ids={
                "projectId": identifier("project_id", project_id),
                "patientId": identifier("patient_id", patient_id),
            },
            subject=f"Update of patient {patient_id!r}",
            repeat=Repeat.BILLED,
            body=json_body(flag("skipInteractive", skip_interactive)),
            verdicts={404: f"Patient {patient_id!r} not found"},
            hint={
                404: "The project is unknown or not accessible with this token, or the patient was never added to "
                "it: that gives this error too, and Add/Update Patient is safe to repeat."
            },
        )
        # Before it is sent: nothing may fail between an accepted update and its caller.
        organization_id = self.organization_id
        answer = self._ask(call, stop, around)
        document = parse_json(answer.body)
        update = PatientUpdate.from_answer(
            document,
            project_id=project_id,
            patient_id=patient_id,
            organization_id=organization_id,
            requested_at=requested_at(answer),
        )
        if update is None:
            message = harmless(document.get("message")) if isinstance(document, dict) else None
            said = clean(message or "nothing readable", self._known_secrets())
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
        Add or update patients; safe to repeat (official guide). HealthEx checks the fields, not this.

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
            repeat=Repeat.SAFE,
            body=json_body({"patients": rows, **flag("suppressNotifications", suppress_notifications)}),
            private=tuple({value for each in personal for value in each}),
            limit=LONG,
        )
        answer = self._ask(call)
        result = AddPatientsResult.from_answer(
            parse_json(answer.body), secrets=self._known_secrets(), personal=personal
        )
        if result is None:
            raise unreadable(call, answer, "the answer is no JSON object, and it is safe to retry")
        return result

    def list_consented_patients(self, project_id: str) -> list[ConsentedPatient]:
        """
        Return the patients who have consented to a project; their consents may have expired since.

        The documented way to the ids for a refresh. HealthEx shows no pages: up to 32 MiB are read.
        """
        call = Call(
            "POST",
            "/v1/consents",
            subject="Listing consented patients",
            ids={"projectId": identifier("project_id", project_id)},
            repeat=Repeat.SAFE,
            body=json_body({"consentTypes": [CONSENT_TYPE], "studyId": project_id}),
            limit=LONG,
        )
        answer = self._ask(call)
        rows = parse_json(answer.body)
        if not isinstance(rows, list):
            raise unreadable(call, answer, "the answer is no JSON array")
        patients, left_out = consented_patients(rows, project_id)
        if left_out:
            log.warning(
                "%d of the consented patients left out: their ids are not made of A-Z a-z 0-9 _ . : - (project %r)",
                left_out,
                project_id,
            )
        return patients

    def create_patient_link(self, project_id: str, external_id: str) -> str:
        """
        Return the signed link by which a patient enters HealthEx; asking again is safe.

        The link lets its holder act as the patient: never log or store it.

        :param project_id: HealthEx's id of the project.
        :param external_id: your own id of the patient.
        """
        call = Call(
            "POST",
            "/v1/projects/{projectId}/link",
            subject="Creating a patient's link",
            ids={"projectId": identifier("project_id", project_id)},
            repeat=Repeat.SAFE,
            body=json_body({"externalId": text("external_id", external_id)}),
            private=(external_id,),
            accept="application/json, text/plain",
        )
        answer = self._ask(call)
        link = _link(answer.body)
        if link is None:
            raise unreadable(call, answer, "the answer is no link")
        self._on_secret(link)
        return link

    def usage_summary(self, start: date | str, end: date | str) -> dict[str, Any]:
        """
        Return HealthEx's account of what was used. Needs an ``ORG_ADMIN`` token.

        The parameters' names, ``startDate`` and ``endDate``, are an assumption: no page we know shows them.

        :param start: a date or datetime, or either as ISO text.
        :param end: likewise.
        """
        call = Call(
            "GET",
            "/v1/usage/summary",
            subject="Usage summary",
            query={"startDate": _iso("start", start), "endDate": _iso("end", end)},
            hint={403: "The token must belong to an ORG_ADMIN."},
        )
        return self._object(call)

    def capability_statement(self) -> dict[str, Any]:
        """Return the FHIR server's CapabilityStatement: a cheap test of host and token that touches no patient."""
        return self._object(
            Call("GET", "/FHIR/R4/metadata", subject="Capability statement", limit=LONG, hint={404: "Check the host."})
        )

    def _object(self, call: Call) -> dict[str, Any]:
        answer = self._ask(call)
        document = parse_json(answer.body)
        if not isinstance(document, dict):
            raise unreadable(call, answer, "the answer is no JSON object")
        return document

    def _ask(self, call: Call, stop: threading.Event | None = None, around: Around | None = None) -> Answer:
        """
        Send a call with the token, as often as it may be.

        :param stop: where a part of the work can be stopped alone.
        :param around: runs around the sending of each try, after every wait.
        """
        stop = stop or self.stop
        may_renew = isinstance(self._settings.credentials, ApiKey)

        def attempt() -> Answer | Failure:
            nonlocal may_renew
            token = self._token()
            outcome = self._send(call, token, stop, around)
            if may_renew and _is_unauthorized(outcome):
                may_renew = False
                self._mint.discard(token)
                outcome = self._send(call, self._token(), stop, around)
            return outcome

        return self._repeated(call, attempt, stop)

    def _repeated(self, call: Call, attempt: Callable[[], Answer | Failure], stop: threading.Event) -> Answer:
        stopped = Failure(HealthExConnectionError(f"{call.subject} not sent: it was cancelled. It is safe to retry."))
        outcome = repeated(attempt, stop, stopped, self._pacer.hold, self._tries)
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    def _send(
        self, call: Call, token: str | None, stop: threading.Event, around: Around | None = None
    ) -> Answer | Failure:
        def send() -> Answer | Failure:
            outcome = self._transport.send(call, token)
            if call.repeat is Repeat.BILLED and isinstance(outcome, Answer):
                self._compare_clocks(outcome)
            return judge(call, outcome, self._settings.base_url, self._known_secrets())

        self._pacer.wait(self._settings.requests_per_second, stop)
        return around(send) if around else send()

    def _compare_clocks(self, answer: Answer) -> None:
        """Warn once of a clock that is wrong: a cohort has thousands of answers."""
        ahead = skew(answer.date, answer.began, answer.seconds)
        if abs(ahead) <= TOLERATED_SKEW or self._clocks_differ:
            return
        self._clocks_differ = True
        if abs(ahead) < UNBELIEVABLE_SKEW:
            log.warning(
                "HealthEx's clock is %+.0f s from this machine's. requested_at follows HealthEx's: check this "
                "machine's clock.",
                ahead.total_seconds(),
            )
        else:
            log.warning(
                "The Date of HealthEx's answer is %+.1f days from this machine's clock, and is ignored: requested_at "
                "follows this machine's clock. Check it.",
                ahead.total_seconds() / 86_400,
            )

    def _token(self) -> str:
        credentials = self._settings.credentials
        if isinstance(credentials, ApiKey):
            token = self._mint.token(self._mint_token)
            self._announce(token)
            return token
        check(credentials.token, datetime.now(timezone.utc))
        return credentials.token

    def _mint_token(self) -> Minted:
        credentials = self._settings.credentials
        assert isinstance(credentials, ApiKey)
        call = Call(
            "POST",
            "/v1/auth/token",
            subject="Token request",
            body=json_body({"apiKey": credentials.key, "apiSecret": credentials.secret}),
            private=(credentials.secret,),
            hint=dict.fromkeys((400, 401, 403), "Check the API key and its secret."),
        )
        try:
            answer = self._repeated(call, lambda: self._send(call, None, self.stop), self.stop)
        except HealthExApiError as error:
            if isinstance(error, HealthExRateLimitError) or not 400 <= error.status_code < 500:
                raise
            refusal = str(error)
        else:
            token = minted(parse_json(answer.body), datetime.now(timezone.utc))
            if token is not None:
                self._announce(token.token)
                return token
            refusal = f"{call.subject} failed (HTTP {answer.status}): the answer has no token. Check the host. ({call})"
        raise HealthExTokenError(refusal)

    def _announce(self, token: str) -> None:
        if token not in self._secrets:
            self._secrets.add(token)
            self._on_secret(token)

    def _known_secrets(self) -> tuple[str, ...]:
        credentials = self._settings.credentials
        secret = (credentials.secret,) if isinstance(credentials, ApiKey) else ()
        return (*self._secrets.copy(), *secret)


def _is_unauthorized(outcome: Answer | Failure) -> bool:
    return isinstance(outcome, Failure) and isinstance(outcome.error, HealthExAuthenticationError)


def _patients(patients: object) -> list[dict[str, Any]]:
    rows = patients if isinstance(patients, Sequence) and not isinstance(patients, (str, bytes)) else ()
    if not rows:
        raise HealthExConfigurationError("patients must be a list of at least one mapping")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise HealthExConfigurationError(f"patient {index} must be a mapping, not {type(row).__name__}")
    return [dict(row) for row in rows]


def _personal(value: object) -> Iterator[str]:
    """Yield every value of a patient that may not be repeated, however it is nested."""
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
    raise HealthExConfigurationError(f"{name} must be a date, a datetime or ISO text, not {value!r}")
