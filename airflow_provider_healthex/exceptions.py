"""The errors of this package. Imports nothing, so that a DAG file can catch them at no cost."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime


class HealthExError(Exception):
    """Base of all errors of this package."""

    def __reduce__(self) -> tuple[object, ...]:
        # pickle would call the class with the message alone, and some need keywords.
        return _remade, (type(self), self.args, dict(vars(self)))


def _remade(kind: type[HealthExError], args: tuple[object, ...], attributes: dict[str, object]) -> HealthExError:
    error = kind.__new__(kind, *args)
    vars(error).update(attributes)
    return error


class HealthExConfigurationError(HealthExError, ValueError):
    """A connection or an argument is unusable: every call fails until it is changed."""


class HealthExTokenError(HealthExError):
    """The stored token has expired or is not valid yet, or the token request was rejected. No update was requested."""


class HealthExConnectionError(HealthExError):
    """A retry is safe: the update was provably never sent, or another request failed that can be repeated."""


class HealthExUpdateAmbiguousError(HealthExError):
    """
    An update was sent, and nobody knows whether HealthEx accepted it: a second request may bill a second retrieval.

    :param status_code: the HTTP status; None where no answer arrived.
    :param requested_at: the moment of this try (UTC, whole seconds): objects modified since then may be its delivery.
    """

    def __init__(self, message: str, *, status_code: int | None = None, requested_at: datetime | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.requested_at = requested_at


class HealthExApiError(HealthExError):
    """
    HealthEx answered with an error.

    :param status_code: the HTTP status.
    :param detail: the service's own text: at most 500 characters, without control characters, tokens and links.
    :param retry_after: seconds to wait before a retry, from the answer's ``Retry-After``; None without it.
    """

    def __init__(self, message: str, *, status_code: int, detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.detail = detail
        self.retry_after = retry_after


class HealthExAuthenticationError(HealthExApiError):
    """401: the token is missing, invalid or expired."""


class HealthExPermissionError(HealthExApiError):
    """403: the token's user lacks the permission."""


class HealthExNotFoundError(HealthExApiError):
    """404: the project or the patient is unknown, or this token has no access to it."""


class HealthExRequestError(HealthExApiError):
    """Any other 4xx: HealthEx rejected the request."""


class HealthExRateLimitError(HealthExApiError):
    """429: too many requests, also after the client's own retries."""


class HealthExServerError(HealthExApiError):
    """5xx: the service failed. Of an update: only where it provably did not accept it."""


class HealthExPatientActionNeeded(HealthExError):
    """
    The patient needs to act before HealthEx can refresh the data.

    :param patient_id: HealthEx's id of the patient.
    :param reason: ``patientActionNeededReason`` of the answer, or None.
    """

    def __init__(self, message: str, *, patient_id: str, reason: str | None) -> None:
        super().__init__(message)
        self.patient_id = patient_id
        self.reason = reason
