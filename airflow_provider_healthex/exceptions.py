"""Every error of this package that a user can catch. Imports nothing, so that catching one costs nothing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime


class HealthExError(Exception):
    """The base of every error this package raises of its own."""

    def __reduce__(self) -> tuple[object, ...]:
        # pickle would call the class with the message alone, and some need keywords.
        return _remade, (type(self), self.args, dict(vars(self)))


def _remade(kind: type[HealthExError], args: tuple[object, ...], attributes: dict[str, object]) -> HealthExError:
    error = kind.__new__(kind, *args)
    vars(error).update(attributes)
    return error


class HealthExConfigurationError(HealthExError, ValueError):
    """A connection or an argument can't be used as it is; the same call fails again until it is changed."""


class HealthExTokenError(HealthExError):
    """The stored token has expired or is not valid yet, or the token request was refused. No update was requested."""


class HealthExConnectionError(HealthExError):
    """The request never reached the service: it is safe to retry."""


class HealthExUpdateAmbiguousError(HealthExError):
    """
    An update was sent and nobody knows whether HealthEx accepted it: a second request may bill a second retrieval.

    :param status_code: the HTTP status, where one arrived, else None.
    :param requested_at: the moment of this try (UTC, whole seconds): data modified since then may be its delivery.
    """

    def __init__(self, message: str, *, status_code: int | None = None, requested_at: datetime | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.requested_at = requested_at


class HealthExApiError(HealthExError):
    """
    HealthEx answered with an error.

    :param status_code: the HTTP status.
    :param detail: the service's own words: at most 500 characters, without control characters and tokens.
    :param retry_after: seconds until the service accepts a retry, by its ``Retry-After``, or None.
    """

    def __init__(self, message: str, *, status_code: int, detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.detail = detail
        self.retry_after = retry_after


class HealthExAuthenticationError(HealthExApiError):
    """401: the token is missing, invalid or expired."""


class HealthExPermissionError(HealthExApiError):
    """403: the token's user may not do this."""


class HealthExNotFoundError(HealthExApiError):
    """404: the project or the patient is unknown, or not accessible with this token."""


class HealthExRequestError(HealthExApiError):
    """Any other 4xx: the request was refused as it stands."""


class HealthExRateLimitError(HealthExApiError):
    """429: too many requests, also after waiting as the service asked."""


class HealthExServerError(HealthExApiError):
    """5xx: the service failed, and for an update it is known that it was not started."""


class HealthExPatientActionNeeded(HealthExError):
    """
    HealthEx needs patient action before it can refresh the data.

    :param patient_id: HealthEx's id of the patient.
    :param reason: ``patientActionNeededReason`` of the answer, or None.
    """

    def __init__(self, message: str, *, patient_id: str, reason: str | None) -> None:
        super().__init__(message)
        self.patient_id = patient_id
        self.reason = reason
