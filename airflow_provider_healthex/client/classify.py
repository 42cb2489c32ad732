"""Which error an answer or its absence means, and whether the call may be retried."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from urllib.parse import urlsplit

from airflow_provider_healthex.client.calls import Call, RetryEffect
from airflow_provider_healthex.client.redaction import clean, detail
from airflow_provider_healthex.client.retries import FailedTry
from airflow_provider_healthex.client.transport import Answer, NoAnswer, NotSent
from airflow_provider_healthex.exceptions import (
    HealthExApiError,
    HealthExAuthenticationError,
    HealthExConnectionError,
    HealthExNotFoundError,
    HealthExPermissionError,
    HealthExRateLimitError,
    HealthExRequestError,
    HealthExServerError,
    HealthExUpdateAmbiguousError,
)

#: With these an update has not started: the request was not understood, or a proxy never reached HealthEx. With any
#: other 5xx it may have. 503 with Retry-After is the exception: it says that the request was throttled.
NOT_STARTED = frozenset({501, 505, 511, 521, 522, 523, 525, 526, 530})

_RETRY_WITH_CARE = (
    "HealthEx may have started the update, and a second request may bill a second retrieval. Check whether data "
    "arrives, or whether the usage summary counts it, before you request it again."
)

#: The error of a status, the verdict in its text, and what to do about it.
_STATUSES: dict[int, tuple[type[HealthExApiError], str, str]] = {
    401: (
        HealthExAuthenticationError,
        "not authenticated",
        "The token is missing, invalid or expired: check the stored one, or the API key and its secret.",
    ),
    403: (
        HealthExPermissionError,
        "forbidden",
        "The token must belong to a data-requestor (research organisation) user with access to the project.",
    ),
    404: (
        HealthExNotFoundError,
        "not found",
        "The project or something in it is unknown, or not accessible with this token.",
    ),
    429: (HealthExRateLimitError, "rate limited", "Retry later, or send fewer requests at once."),
}


def not_sent(call: Call, error: NotSent, base_url: str) -> FailedTry:
    """Classify a request of which nothing was sent."""
    advice = (
        "Check the certificate, the setting verify and the CA bundle."
        if error.certificate
        else "It is safe to retry; check the host, the network and the proxy."
    )
    return FailedTry(
        HealthExConnectionError(f"{call.subject} not sent: {error} ({base_url} was never reached). {advice}"),
        retry=not error.certificate,
    )


def no_answer(call: Call, error: NoAnswer) -> FailedTry:
    """Classify a request that was sent, and got no readable answer."""
    status = f"HTTP {error.status}, " if error.status else ""
    if call.retry_effect is RetryEffect.BILLED:
        return FailedTry(_ambiguous(call, f"{status}no readable answer", str(error), error.status, error.requested_at))
    return FailedTry(
        HealthExConnectionError(f"{call.subject} got no readable answer: {status}{error}. It is safe to retry."),
        retry=error.timed_out and call.retry_effect is RetryEffect.IDEMPOTENT,
    )


def check(call: Call, answer: Answer, secrets: Iterable[str]) -> None:
    """
    Accept a whole 2xx answer.

    :param secrets: values that no error may repeat.
    :raises FailedTry: for any other answer.
    """
    if answer.status // 100 != 2:
        raise _rejected(call, answer, (*secrets, *call.private))
    if answer.flaw is None:
        return
    if answer.too_long or call.retry_effect is RetryEffect.BILLED:
        raise FailedTry(unreadable(call, answer, f"the answer is {answer.flaw}"))
    raise FailedTry(
        HealthExConnectionError(f"{call.subject} got no whole answer: {answer.flaw}. It is safe to retry."),
        retry=answer.timed_out and call.retry_effect is RetryEffect.IDEMPOTENT,
    )


def unreadable(call: Call, answer: Answer, what: str) -> HealthExUpdateAmbiguousError | HealthExApiError:
    """Return the error for a 2xx answer that makes no sense; it never repeats the body."""
    if call.retry_effect is RetryEffect.BILLED:
        return _ambiguous(call, f"HTTP {answer.status}", what, answer.status, answer.requested_at)
    return HealthExApiError(
        f"{call.subject} failed (HTTP {answer.status}): {what}. Check that the host is HealthEx's API. ({call})",
        status_code=answer.status,
    )


def _ambiguous(
    call: Call, came: str, what: str, status: int | None, requested_at: datetime
) -> HealthExUpdateAmbiguousError:
    text = _sentence(f"{call.subject} is ambiguous ({came})", what)
    return HealthExUpdateAmbiguousError(
        f"{text} {_RETRY_WITH_CARE} ({call})", status_code=status, requested_at=requested_at
    )


def _rejected(call: Call, answer: Answer, secrets: Iterable[str]) -> FailedTry:
    status, words = answer.status, detail(answer.body, secrets)
    throttled = status == 429 or (status == 503 and answer.retry_after is not None)
    if call.retry_effect is RetryEffect.BILLED and status >= 500 and status not in NOT_STARTED and not throttled:
        return FailedTry(_ambiguous(call, f"HTTP {status}", words, status, answer.requested_at))
    kind, verdict, hint = _STATUSES.get(status) or _other_status(answer)
    first_words = call.first_words.get(status) or f"{call.subject} {verdict}"
    text = [_sentence(f"{first_words} (HTTP {status})", words), call.hints.get(status) or hint, f"({call})"]
    return FailedTry(
        kind(" ".join(filter(None, text)), status_code=status, detail=words, retry_after=answer.retry_after),
        retry=throttled or (status >= 500 and call.retry_effect is RetryEffect.IDEMPOTENT),
        wait=answer.retry_after,
        throttled=throttled,
    )


def _other_status(answer: Answer) -> tuple[type[HealthExApiError], str, str]:
    if answer.status >= 500:
        return HealthExServerError, "failed", "The service failed: retry later."
    if answer.status >= 400:
        return HealthExRequestError, "rejected", ""
    try:
        # The host alone: the rest may hold a signature, or repeat what was sent.
        host = clean(urlsplit(answer.location).hostname or "")
    except ValueError:
        host = ""
    hint = f"Redirects are never followed{f' (to {host})' if host else ''}: check the host."
    return HealthExApiError, "redirected", hint


def _sentence(verdict: str, words: str) -> str:
    text = f"{verdict}: {words}" if words else verdict
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."
