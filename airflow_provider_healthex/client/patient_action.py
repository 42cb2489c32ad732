"""Why HealthEx needs patient action before it can refresh the data, and what to do about it."""

from __future__ import annotations

from airflow_provider_healthex.exceptions import HealthExPatientActionNeeded

_CONTACT = "Contact the patient with the same HealthEx link as originally; the data comes when they have used it."

#: The documented values of ``patientActionNeededReason`` (docs.healthex.io). What to do about each is our
#: reading, except for the link, which is the official guide's advice for them all.
REASONS = {
    "CONSENT_EXPIRED": f"The consent has expired (it lasts one year). {_CONTACT}",
    "CONSENT_NOT_FOUND": f"There is no consent to this project. {_CONTACT}",
    "CONSENT_REVOKED": "The patient has withdrawn the consent. Respect that; only they can give it again.",
    "AUTHENTICATION_EXPIRED": f"The patient has to log in to a health system again. {_CONTACT}",
    "AUTHENTICATION_NEEDED_NEW_FACILITY": f"The patient has to log in to a new health system. {_CONTACT}",
    "UNLOCKED_OR_NO_TARGETED_LIST": (
        "This seems to be about the organisation's list of targeted facilities rather than the patient; HealthEx "
        "does not document it further. Ask HealthEx's support."
    ),
}
#: The guide's advice is for them all, but a new reason may be one for which a link is wrong.
_UNKNOWN = f"The reason is new to this package: let a person check first. {_CONTACT}"


def patient_action_needed(patient_id: str, reason: str | None) -> HealthExPatientActionNeeded:
    """Return the error for an update that needs patient action; an unknown reason is kept as it is."""
    advice = REASONS.get(reason or "", _UNKNOWN)
    return HealthExPatientActionNeeded(
        f"Patient {patient_id!r} needs action ({reason or 'no reason given'}). {advice}",
        patient_id=patient_id,
        reason=reason,
    )
