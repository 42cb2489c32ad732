"""The sandbox's patients, and the outcome of a request for each of them."""

from __future__ import annotations

from dataclasses import dataclass

ORG_ID = "org-demo"
PROJECT_ID = "project-demo"

IN_PROGRESS = "patient-in-progress"
FIRST_DELIVERY = "patient-first-delivery"
PARTIAL = "patient-partial"
SEVERAL_FILES = "patient-several-files"
NOTHING_CHANGED = "patient-nothing-changed"
LATE_TAIL = "patient-late-tail"
CONSENT_ENDS_SOON = "patient-consent-ends-soon"
CONSENT_EXPIRED = "patient-consent-expired"
CONSENT_NOT_FOUND = "patient-consent-not-found"
CONSENT_REVOKED = "patient-consent-revoked"
UNLOCKED_OR_NO_TARGETED_LIST = "patient-unlocked"
AUTHENTICATION_EXPIRED = "patient-authentication-expired"
AUTHENTICATION_NEEDED_NEW_FACILITY = "patient-new-facility"
NEW_REASON = "patient-new-reason"
UNKNOWN = "patient-unknown"
FORBIDDEN = "patient-forbidden"
PROJECT_PAUSED = "patient-project-paused"


@dataclass(frozen=True)
class File:
    """
    One file of a delivery.

    :param name: under the delivery path.
    :param after: when it comes after the request, in multiples of the sandbox's delay.
    :param stale: whether it still holds the previous refresh.
    """

    name: str
    after: float = 1.0
    stale: bool = False


ONE_FILE = (File("bundle.json"),)

#: The values of ``patientActionNeededReason`` that HealthEx documents.
ACTION_REASONS = (
    "CONSENT_EXPIRED",
    "CONSENT_NOT_FOUND",
    "CONSENT_REVOKED",
    "UNLOCKED_OR_NO_TARGETED_LIST",
    "AUTHENTICATION_EXPIRED",
    "AUTHENTICATION_NEEDED_NEW_FACILITY",
)

#: None of them, like a reason that HealthEx adds after a DAG was written.
INVENTED_REASON = "INVENTED_BY_THE_SANDBOX"


def external_id_of(patient_id: str) -> str:
    """Return the study's own id of a sandbox patient."""
    return patient_id.replace("patient-", "ext-", 1)


@dataclass(frozen=True)
class Scenario:
    """
    The outcome of a request for a patient.

    :param summary: a line of text.
    :param error: status and text of an error.
    :param reason: ``patientActionNeededReason``.
    :param skipped_facilities: above 0 the update is partial.
    :param files: the delivery.
    :param delivered_before: whether there is an earlier delivery.
    :param consent_days: days until the consent ends (negative: it ended), None without a consent.
    :param revoked: whether the patient withdrew that consent.
    :param brief: whether bundles are small, so that thousands of them are made in a second.
    """

    patient_id: str
    summary: str
    error: tuple[int, str] | None = None
    reason: str | None = None
    skipped_facilities: int = 0
    files: tuple[File, ...] = ONE_FILE
    delivered_before: bool = True
    consent_days: int | None = 300
    revoked: bool = False
    brief: bool = False

    @property
    def external_id(self) -> str:
        """The study's own id of the patient."""
        return external_id_of(self.patient_id)

    @property
    def file_names(self) -> tuple[str, ...]:
        """The names a whole delivery has."""
        return tuple(dict.fromkeys(file.name for file in self.files or ONE_FILE))


def _action_needed(patient_id: str, reason: str, summary: str, consent_days: int | None = 200) -> Scenario:
    return Scenario(
        patient_id, f"{reason}: {summary}", reason=reason, consent_days=consent_days,
        revoked=reason == "CONSENT_REVOKED", delivered_before=consent_days is not None,
    )  # fmt: skip


def _rejected(patient_id: str, status: int, text: str, summary: str) -> Scenario:
    return Scenario(patient_id, summary, error=(status, text), files=(), delivered_before=False, consent_days=None)


SCENARIOS: dict[str, Scenario] = {
    scenario.patient_id: scenario
    for scenario in (
        Scenario(IN_PROGRESS, "accepted; the earlier delivery is overwritten after the delay"),
        Scenario(FIRST_DELIVERY, "accepted; nothing was delivered before", delivered_before=False),
        Scenario(PARTIAL, "accepted, with 2 facilities skipped: a partial update", skipped_facilities=2),
        Scenario(
            SEVERAL_FILES,
            "accepted; 3 files come one after the other, from 1 to 2 delays after the request",
            files=(File("bundle-1.json", 1.0), File("bundle-2.json", 1.5), File("bundle-3.json", 2.0)),
        ),
        Scenario(NOTHING_CHANGED, "accepted; nothing has changed and nothing is delivered", files=()),
        Scenario(
            LATE_TAIL,
            "accepted; a file of the previous refresh comes after 1/3 delay, this one's after 2 delays",
            files=(File("bundle-2.json", 1 / 3, stale=True), File("bundle-1.json", 2.0), File("bundle-2.json", 2.0)),
        ),
        Scenario(CONSENT_ENDS_SOON, "accepted; the consent ends in 10 days", consent_days=10),
        _action_needed(CONSENT_EXPIRED, "CONSENT_EXPIRED", "the consent ended 5 days ago", consent_days=-5),
        _action_needed(
            CONSENT_NOT_FOUND, "CONSENT_NOT_FOUND", "there is no consent to this project", consent_days=None
        ),
        _action_needed(CONSENT_REVOKED, "CONSENT_REVOKED", "the patient withdrew the consent"),
        _action_needed(
            UNLOCKED_OR_NO_TARGETED_LIST,
            "UNLOCKED_OR_NO_TARGETED_LIST",
            "no targeted facilities, or they are not locked (a guess from the name)",
        ),
        _action_needed(
            AUTHENTICATION_EXPIRED,
            "AUTHENTICATION_EXPIRED",
            "a facility requires a new sign-in (with skipInteractive: accepted, 1 facility skipped)",
        ),
        _action_needed(
            AUTHENTICATION_NEEDED_NEW_FACILITY,
            "AUTHENTICATION_NEEDED_NEW_FACILITY",
            "a new facility requires a sign-in (with skipInteractive: accepted, 1 facility skipped)",
        ),
        _action_needed(NEW_REASON, INVENTED_REASON, "not a reason of HealthEx, like one that it adds later"),
        _rejected(UNKNOWN, 404, "Recruitment not found", "404: never added to the project, as any other id"),
        _rejected(FORBIDDEN, 403, "Forbidden resource", "403: the token's user has no right to this patient"),
        # The guide promises "an appropriate error" and names no status: 400 is the sandbox's guess.
        _rejected(PROJECT_PAUSED, 400, "Project is not active", "400 (a guess): the project is paused"),
    )
}


def table() -> str:
    """Return the patients with the outcome of each, as text in three columns."""
    rows = [("PATIENT", "EXTERNAL ID", "WHAT HAPPENS")]
    rows += [(each.patient_id, each.external_id, each.summary) for each in SCENARIOS.values()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in rows)
