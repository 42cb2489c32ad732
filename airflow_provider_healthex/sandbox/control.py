"""
The sandbox's control API under ``/_sandbox/``, for tests and demos, without a token.

``GET /_sandbox/state``
    ``{"calls": {endpoint: count}, "faults": […], "patients": {id: {"external_id", "what_happens", "joined",
    "acted", "version", "asked", "accepted"}}}``.
``GET /_sandbox/patients/{id}``
    A patient's requests: ``{"asked": count, "accepted": count, "requests": [{"at", "status", "accepted"}]}``.
    ``asked`` counts every ``$updateData`` that arrived, also refused and cut off ones; ``accepted`` those that
    started a retrieval.
``POST /_sandbox/patients/{id}/deliver``
    Delivers for a patient now, without a request: ``{"keys": […]}``.
``POST /_sandbox/patients/{id}/act``
    The patient goes through the link again: updates are accepted from now on, and data comes after the delay,
    without a request. A patient that was only added so far joins by it.
``POST /_sandbox/faults`` with ``{"endpoint", "kind", "times": 1, "seconds", "retry_after", "body",
"patient_id"}``
    Makes the next requests of an endpoint fail; the kinds are in :class:`~.faults.Fault`.
``DELETE /_sandbox/faults``
    No more faults.
``GET /_sandbox/mails``
    The received mails: ``[{"recipient", "subject", "text"}]``, patients' links too; for a browser a page with the
    links to click. A link lets its reader act as the patient: no real mailbox would be readable like this.
``POST /_sandbox/reset``
    Starts over: no requests, no mails, no pending deliveries, and only the earlier deliveries are there.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, abort, jsonify, request

from airflow_provider_healthex.sandbox import pages
from airflow_provider_healthex.sandbox.service import service
from airflow_provider_healthex.sandbox.state import Patient

control = Blueprint("control", __name__, url_prefix="/_sandbox")


@control.get("/state")
def _show_state() -> Response:
    state = service().state
    with state.lock:
        return jsonify(
            calls=dict(state.calls),
            faults=service().faults.pending(),
            patients={each.patient_id: _summary(each) for each in state.patients.values()},
        )


@control.get("/patients/<patient_id>")
def _show_patient(patient_id: str) -> Response:
    updates = service().state.updates_of(patient_id)
    return jsonify(
        asked=len(updates),
        accepted=sum(each.accepted for each in updates),
        requests=[each.to_dict() for each in updates],
    )


@control.post("/patients/<patient_id>/deliver")
def _deliver(patient_id: str) -> Response:
    return jsonify(keys=service().deliveries.deliver(_patient(patient_id)))


@control.post("/patients/<patient_id>/act")
def _act(patient_id: str) -> tuple[Response, int]:
    service().deliveries.act(_patient(patient_id))
    return jsonify(), 202


@control.post("/faults")
def _add_fault() -> tuple[Response, int]:
    arguments: dict[str, Any] = request.get_json(silent=True) or {}
    try:
        service().faults.add(**arguments)
    except (TypeError, ValueError) as error:
        abort(400, str(error))
    return jsonify(service().faults.pending()), 201


@control.delete("/faults")
def _clear_faults() -> Response:
    service().faults.clear()
    return jsonify(service().faults.pending())


@control.get("/mails")
def _show_mails() -> Response:
    mails = service().mailbox.mails()
    is_browser = request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"
    response = pages.mailbox(mails) if is_browser else jsonify([mail.to_dict() for mail in mails])
    response.vary.add("Accept")
    return response


@control.post("/reset")
def _reset() -> Response:
    service().reset()
    return jsonify()


def _patient(patient_id: str) -> Patient:
    return service().state.patients.get(patient_id) or abort(404, f"Patient {patient_id!r} is not in the sandbox.")


def _summary(patient: Patient) -> dict[str, Any]:
    updates = service().state.updates_of(patient.patient_id)
    return {
        "external_id": patient.external_id,
        "what_happens": patient.scenario.summary,
        "joined": patient.joined,
        "acted": patient.acted,
        "version": patient.version,
        "asked": len(updates),
        "accepted": sum(each.accepted for each in updates),
    }
