"""The meaning of an AWS error for a wait: whether a later poke can succeed, which service it is of, and what to do."""

from __future__ import annotations

import asyncio
import re
from enum import Enum

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from botocore.retries.standard import ThrottledRetryableChecker, TransientRetryableChecker


class Doing(Enum):
    """The step at which an error came."""

    OPENING = "opening a client"
    LISTING = "ListObjectsV2"
    DECIDING = "deciding"
    WRITING = "PutObject"

    @property
    def operation(self) -> str:
        """The operation, as AWS names it."""
        return self.value

    @property
    def right(self) -> str:
        """The right that it needs."""
        return "s3:PutObject" if self is Doing.WRITING else "s3:ListBucket"


_TRANSIENT_ERRORS = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.TokenRetrievalError,
    ResponseParserError,
    asyncio.TimeoutError,
    OSError,
)
#: Redirected while a new bucket's name spreads; timed out; in conflict with another operation; too early; throttled.
_TRANSIENT_STATUSES = frozenset({307, 408, 409, 425, 429})
#: botocore itself retries these.
_RETRYABLE_CODES = frozenset(
    code
    for checker, name in (
        (TransientRetryableChecker, "_TRANSIENT_ERROR_CODES"),
        (ThrottledRetryableChecker, "_THROTTLED_ERROR_CODES"),
    )
    for code in getattr(checker, name, ())
)
#: Families of codes: throttled, timed out, an outage; a clock that is off, which is set again; credentials that have
#: expired, as the next client gets others.
_TRANSIENT_CODES = re.compile(
    r"throttl|slow_?down|too_?many_?requests|(limit|rate)_?exceeded|time_?out|timed_?out|internal_?(error|failure)|"
    r"unavailable|server_?(busy|error)|aborted|try_?again|"
    r"time_?too_?skewed|request_?(expired|in_?the_?future)|"
    r"expired_?token|token_?expired|token_?refresh_?required",
    re.IGNORECASE,
)
#: A new role, a replaced token or an unreachable credential endpoint can cause these errors, too. They are permanent
#: only until a listing has succeeded.
DENIALS = frozenset(
    {
        *("AccessDenied", "AccessDeniedException", "AllAccessDisabled", "InvalidToken", "NoCredentialsError"),
        *("401", "403", "Forbidden", "Unauthorized"),
    }
)

_KEYS = "correct the access key and secret of the connection"
_REGION = "set the bucket's region as region_name, or in the connection's Extra"
_CERTIFICATE = "check the endpoint's certificate, verify, and the CA bundle"
ADVICE = {
    "NoSuchBucket": "create the bucket, or correct bucket_name",
    "InvalidBucketName": "correct bucket_name",
    "AccessDenied": "grant {right} on the bucket to these credentials",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidToken": "renew the session token of the connection (aws_session_token)",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "NoCredentialsError": "give it an AWS connection, or credentials in its environment",
    "ParamValidationError": "correct bucket_name",
    "SSLError": _CERTIFICATE,
    "OSError": _CERTIFICATE,
    "FileNotFoundError": _CERTIFICATE,
}
#: The operations by which botocore comes by credentials, and whose they are.
_CREDENTIAL_SERVICES = {
    "AssumeRole": "STS",
    "AssumeRoleWithSAML": "STS",
    "AssumeRoleWithWebIdentity": "STS",
    "GetCallerIdentity": "STS",
    "GetFederationToken": "STS",
    "GetSessionToken": "STS",
    "GetRoleCredentials": "SSO",
    "CreateToken": "SSO OIDC",
}


def advice_for(code: str, operation: str, doing: Doing) -> str:
    """Return what to do about a permanent error."""
    service = service_of(operation)
    if service == "STS" and code in DENIALS:
        return f"let these credentials call sts:{operation} for the role of the connection"
    return ADVICE.get(code, f"see the code in the {service} documentation").format(right=doing.right)


def service_of(operation: str) -> str:
    """Return whose operation it is."""
    return _CREDENTIAL_SERVICES.get(operation, "S3")


def code_of(error: Exception) -> str:
    """Return the code that AWS gives an error, or the name of its class."""
    if isinstance(error, boto.ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) or "no code"
    return type(error).__name__


def operation_of(error: Exception, doing: Doing) -> str:
    """Return the operation that failed, as botocore reports it: credentials are fetched within another one."""
    return str(error.operation_name) if isinstance(error, boto.ClientError) else doing.operation


def is_transient(error: Exception) -> bool:
    """Return whether a later poke may succeed."""
    if isinstance(error, boto.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
        code = code_of(error)
        by_code = code in _RETRYABLE_CODES or bool(_TRANSIENT_CODES.search(code))
        return by_code or status in _TRANSIENT_STATUSES or status >= 500
    return isinstance(error, _TRANSIENT_ERRORS) and not _is_about_certificates(error)


def _is_about_certificates(error: Exception) -> bool:
    """Whether no later poke can trust the server either: its certificate, or our bundle, is not what it should be."""
    return isinstance(error, FileNotFoundError) or "certificate" in str(error).lower()
