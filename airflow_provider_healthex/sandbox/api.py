"""
HealthEx's HTTP contract as far as public material shows it, answered from the sandbox's state.

========================================================================= ================================
``POST /v1/auth/token``                                                   key and secret for a 24 h JWT
``POST /v1/projects/{p}/recruitment/identified-patients/{id}/$updateData`` requests a refresh
``POST /v1/consents``                                                     the patients of a project
``POST /v1/projects/{p}/patients``                                        adds patients; failures in the body
``POST /v1/projects/{p}/link``                                            a patient's link, as bare text
``GET /v1/usage/summary``                                                 retrievals, for an ``ORG_ADMIN``
``GET /FHIR/R4/metadata``                                                 CapabilityStatement
========================================================================= ================================

HealthEx's behaviour that isn't public is a guess here, and is marked as one.
"""

from __future__ import annotations

import math
import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

from flask import Blueprint, Flask, Response, abort, g, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES

from airflow_provider_healthex.sandbox import pages
from airflow_provider_healthex.sandbox.control import control
from airflow_provider_healthex.sandbox.faults import Fault, cut, cut_after_half
from airflow_provider_healthex.sandbox.patients import PROJECT_ID
from airflow_provider_healthex.sandbox.service import EXTENSION, Service, service
from airflow_provider_healthex.sandbox.state import Patient, State, UpdateRequest

CONSENT_TYPE = "PATIENT_DIRECTED_DATA_EXCHANGE"

GARBAGE = "<html><body>This is no JSON.</body></html>"

_REQUIRED = {  # of a patient to add, with the allowed values
    "firstName": None,
    "lastName": None,
    "contactPreference": ("email", "phone"),
    "languagePreference": ("en", "es"),
}

healthex = Blueprint("healthex", __name__)


def create_app(parts: Service) -> Flask:
    """Return the API with its control API."""
    app = Flask("healthex-sandbox", static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions[EXTENSION] = parts
    app.register_blueprint(healthex)
    app.register_blueprint(control)
    app.register_error_handler(HTTPException, _in_envelope)
    app.after_request(_close_to_other_sites)
    return app


def _close_to_other_sites(response: Response) -> Response:
    for name, value in pages.HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _in_envelope(error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.code or 500, error.description or "")


def _error(status: int, message: str) -> Response:
    """Return an error in the envelope that HealthEx uses."""
    response = jsonify(message=message, statusCode=status, error=HTTP_STATUS_CODES.get(status, "Error"))
    response.status_code = status
    return response


@healthex.before_request
def _count_and_disturb() -> Response | None:
    """Count the request, and apply a fault that comes before the answer."""
    endpoint, arguments = _called()
    if endpoint == "update" and not _path_as_sent().endswith("/$updateData"):
        # Flask has decoded %24 by now; HealthEx may not.
        abort(404, f"Cannot POST {_path_as_sent()}")
    state = service().state
    g.over = state.over
    with state.lock:
        state.calls[endpoint] += 1
    if endpoint == "update":
        g.update = state.add_request(arguments["project_id"], arguments["patient_id"])
    if response := _pace(endpoint):
        return response
    g.fault = service().faults.take(endpoint, arguments.get("patient_id"))
    return _before(g.fault) if g.fault else None


@healthex.before_request
def _authenticate() -> None:
    if _called()[0] in ("token", "link_page", "follow_link"):
        return
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    claims = service().tokens.verify(token) if scheme.lower() == "bearer" else None
    if claims is None or "link" in claims:
        abort(401, "Unauthorized")
    g.claims = claims


@healthex.after_request
def _record_and_spoil(response: Response) -> Response:
    """Keep the status of an update, and apply a fault that comes with the answer."""
    fault: Fault | None = g.get("fault")
    if fault and fault.kind == "garbage" and response.status_code < 400:
        response.set_data(fault.body or GARBAGE)
        response.content_type = "text/html"
    if (update := g.get("update")) and not (fault and fault.kind in ("cut", "cut_after")):
        _record_answer(update, response.status_code)
    return cut_after_half(response) if fault and fault.kind == "cut_after" else response


@healthex.post("/v1/auth/token", endpoint="token")
def _mint() -> tuple[Response, int]:
    body = _json_object()
    if (body.get("apiKey"), body.get("apiSecret")) != service().credentials:
        abort(401, "Invalid API key or secret")
    token = service().tokens.sign()
    return jsonify(token=token, expiration=(service().tokens.verify(token) or {})["exp"]), 201


@healthex.post("/v1/projects/<project_id>/recruitment/identified-patients/<patient_id>/$updateData", endpoint="update")
def _update(project_id: str, patient_id: str) -> tuple[Response, int]:
    skip_interactive = _json_object().get("skipInteractive", False)
    if not isinstance(skip_interactive, bool):
        abort(400, "skipInteractive must be a boolean value")
    _check_project(project_id)
    patient = service().state.patient(patient_id) or abort(404, "Recruitment not found")
    if patient.scenario.error:
        abort(*patient.scenario.error)
    g.answer = answer = _answer(patient, skip_interactive)
    if "retrievalId" in answer:
        g.update.accepted = True
        service().deliveries.schedule(patient)
    return jsonify(answer), 201


@healthex.post("/v1/consents", endpoint="consents")
def _list_consents() -> Response:
    body = _json_object()
    _check_project(body.get("studyId"))
    if CONSENT_TYPE not in body.get("consentTypes", ()):
        return jsonify([])
    state = service().state
    with state.lock:
        patients = [each for each in state.patients.values() if each.joined]
    consented = (each for each in patients if each.acted or each.scenario.consent_days is not None)
    return jsonify([_consents(each, g.claims) for each in consented])


@healthex.post("/v1/projects/<project_id>/patients", endpoint="patients")
def _add_patients(project_id: str) -> tuple[Response, int]:
    _check_project(project_id)
    patients = _json_object().get("patients")
    if not isinstance(patients, list) or not patients:
        abort(400, "patients should be a non-empty array")
    return jsonify(_added(service().state, patients)), 201


@healthex.post("/v1/projects/<project_id>/link", endpoint="link")
def _link(project_id: str) -> Response:
    _check_project(project_id)
    external_id = _json_object().get("externalId")
    patient = isinstance(external_id, str) and service().state.by_external_id(external_id)
    if not patient:
        abort(400, "Patient not found for provided externalId")
    signed = service().tokens.sign(link=patient.patient_id)
    return Response(f"{request.host_url}link/{signed}", status=201, content_type="text/html")


@healthex.get("/link/<signed>", endpoint="link_page")
def _link_page(signed: str) -> Response:
    _linked(signed)
    body = "<p>Here a patient signs in and consents.</p>"
    body += '<form method="post"><button>Sign in and consent</button></form>'
    return pages.page("The sandbox's patient page", body, form=True)


@healthex.post("/link/<signed>", endpoint="follow_link")
def _follow_link(signed: str) -> Response:
    service().deliveries.act(_linked(signed))
    return pages.page("Thank you", "<p>Your data is on its way.</p>")


@healthex.get("/v1/usage/summary", endpoint="usage")
def _usage() -> Response:
    if "ORG_ADMIN" not in g.claims.get("permissions", ()):
        abort(403, "Forbidden resource")
    state = service().state
    with state.lock:
        accepted = sum(each.accepted for each in state.all_updates())
    # A guess: neither the parameters nor the fields are public.
    return jsonify(organizationId=g.claims.get("organizationId"), **request.args.to_dict(), retrievals=accepted)


@healthex.get("/FHIR/R4/metadata", endpoint="metadata")
def _metadata() -> Response:
    response = jsonify(
        resourceType="CapabilityStatement",
        status="active",
        date="2026-01-01",
        kind="instance",
        implementation={"description": "HealthEx sandbox"},
        fhirVersion="4.0.1",
        format=["json"],
    )
    response.content_type = "application/fhir+json"
    return response


def _called() -> tuple[str, dict[str, Any]]:
    return (request.endpoint or "").rpartition(".")[2], dict(request.view_args or {})


def _path_as_sent() -> str:
    sent: str = request.environ.get("REQUEST_URI") or request.environ.get("RAW_URI") or request.path
    return sent.partition("?")[0]


def _record_answer(update: UpdateRequest, status: int) -> None:
    update.status = status
    answer = g.get("answer", {})
    service().state.emit(
        "answered",
        patient_id=update.patient_id,
        status=status,
        message=answer.get("message"),
        reason=answer.get("patientActionNeededReason"),
    )


def _pace(endpoint: str) -> Response | None:
    """Apply rate limit and latency. A patient's own pages are exempt."""
    if endpoint in ("link_page", "follow_link"):
        return None
    limit, latency = service().rate_limit, service().latency
    if limit and (wait := limit.take()):
        response = _error(429, "Too Many Requests")
        response.headers["Retry-After"] = str(math.ceil(wait))
        return response
    return cut() if latency and g.over.wait(latency) else None


def _before(fault: Fault) -> Response | None:
    if fault.kind == "cut":
        return cut()
    if fault.kind == "slow" and g.over.wait(fault.seconds):
        return cut()
    if fault.status is None:
        return None
    if fault.body is None:
        response = _error(fault.status, HTTP_STATUS_CODES.get(fault.status, "Error"))
    else:
        response = Response(fault.body, status=fault.status, content_type="text/plain")
    if fault.retry_after is not None:
        response.headers["Retry-After"] = (
            fault.retry_after if isinstance(fault.retry_after, str) else f"{fault.retry_after:g}"
        )
    return response


def _json_object() -> dict[str, Any]:
    if not request.is_json:
        abort(400, "Content-Type must be application/json")
    body = request.get_json(silent=True)
    if not isinstance(body, dict):
        abort(400, "The body must be a JSON object")
    return body


def _check_project(project_id: object) -> None:
    if project_id != PROJECT_ID:
        abort(404, "Project not found")


def _answer(patient: Patient, skip_interactive: bool) -> dict[str, Any]:
    reason = patient.reason
    skipped = patient.scenario.skipped_facilities
    if reason and skip_interactive and reason.startswith("AUTHENTICATION_"):
        reason, skipped = None, 1
    if reason:
        return {"message": "PATIENT_ACTION_NEEDED", "patientActionNeededReason": reason}
    changed = 3 if patient.scenario.files else 0
    return {
        "message": "IN_PROGRESS_NO_ACTION_NEEDED",
        "skippedFacilitiesCount": skipped,
        "counts": {
            "skippedExistingFacilities": skipped,
            "changedExistingFacilities": changed,
            "unchangedExistingFacilities": 3 - changed,
            "retrievedNewFacilities": 0,
            "skippedNewFacilities": 0,
        },
        "retrievalId": str(uuid.uuid4()),
    }


def _consents(patient: Patient, claims: dict[str, Any]) -> dict[str, Any]:
    days = 365 if patient.acted else patient.scenario.consent_days or 0
    expires = datetime.now(timezone.utc) + timedelta(days=days)
    return {
        "healthcareOrganizationId": claims.get("organizationId"),
        "patientId": patient.patient_id,
        "consents": [
            {
                "consentType": CONSENT_TYPE,
                "studyId": PROJECT_ID,
                "hasPatientConsented": patient.acted or not patient.scenario.revoked,
                "source": "PATIENT",
                "consentRecordId": str(uuid.uuid5(uuid.NAMESPACE_URL, patient.patient_id)),
                # A guess: only the field's name is public.
                "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            }
        ],
    }


def _added(state: State, patients: list[Any]) -> dict[str, Any]:
    errors: list[dict[str, Any]] = []
    duplicates: list[dict[str, Any]] = []  # a guess: only the name is public
    added: list[dict[str, Any]] = []
    for index, each in enumerate(patients):
        if error := _invalid(each):
            errors.append({"patientIndex": index, "error": error})
            continue
        patient, is_new = state.invite(each.get("externalId"), each.get("email"))
        entry = {"patientIndex": index, "email": each.get("email"), "referenceId": patient.reference_id}
        (added if is_new else duplicates).append(entry)
    return {
        "totalProcessed": len(patients),
        "successCount": len(added),
        "errorCount": len(errors),
        "duplicatesCount": len(duplicates),
        "errors": errors,
        "duplicates": duplicates,
        "successfulPatients": added,
    }


def _invalid(patient: object) -> str | None:
    if not isinstance(patient, dict):
        return "must be an object"
    for name, allowed in _REQUIRED.items():
        if not patient.get(name):
            return f"{name} is required"
        if allowed and patient[name] not in allowed:
            return f"{name} must be one of {', '.join(allowed)}"
    contact = patient["contactPreference"]
    return None if patient.get(contact) else f"{contact} is required"


def _linked(signed: str) -> Patient:
    claims = service().tokens.verify(signed) or {}
    return service().state.patients.get(claims.get("link", "")) or abort(404, "This link is not valid")
