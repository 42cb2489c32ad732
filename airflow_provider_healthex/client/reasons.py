"""Why HealthEx needs a patient to act before it can refresh the data, and what to do about it."""

from __future__ import annotations

from airflow_provider_healthex.exceptions import HealthExPatientActionNeeded

_CONTACT = "Contact the patient with the same HealthEx link as originally; the data comes when they have used it."

#: The documented values of ``patientActionNeededReason`` (docs.healthex.io). What each asks for is our reading but
#: for the link, which is the official guide's advice for them all.
REASONS = {
    "CONSENT_EXPIRED": f"The consent has expired (it lasts one year). {_CONTACT}",
    "CONSENT_NOT_FOUND": f"There is no consent to this project. {_CONTACT}",
    "CONSENT_REVOKED": "The patient has withdrawn the consent. Respect that; only they can give it again.",
    "AUTHENTICATION_EXPIRED": f"The patient must log in to a health system again. {_CONTACT}",
    "AUTHENTICATION_NEEDED_NEW_FACILITY": f"The patient must log in to a new health system. {_CONTACT}",
    "UNLOCKED_OR_NO_TARGETED_LIST": (
        "This seems to be about the organisation's list of targeted facilities rather than the patient; HealthEx "
        "does not document it further. Ask HealthEx's support."
    ),
}
#: The guide's advice is for them all, but a new reason may be one for which a link is wrong.
_UNKNOWN = f"This package doesn't know the reason: let a person look first. {_CONTACT}"


def patient_action_needed(patient_id: str, reason: str | None) -> HealthExPatientActionNeeded:
    """Return the error for an update that the patient must make possible; an unknown reason is kept as it is."""
    advice = REASONS.get(reason or "", _UNKNOWN)
    return HealthExPatientActionNeeded(
        f"HealthEx needs patient {patient_id} to act ({reason or 'no reason given'}). {advice}",
        patient_id=patient_id,
        reason=reason,
    )
