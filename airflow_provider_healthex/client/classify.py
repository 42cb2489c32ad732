"""What an outcome means for a call: an answer, or which error, and whether the request may be retried."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from urllib.parse import urlsplit

from airflow_provider_healthex.client.calls import Call, Repeat
from airflow_provider_healthex.client.headers import request_moment, retry_after, whole
from airflow_provider_healthex.client.retries import Failure
from airflow_provider_healthex.client.redaction import clean, detail
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

#: With these an update has not started: the request was not understood, or a proxy never reached the service. With
#: any other 5xx it may have: somebody failed in the middle. 503 with Retry-After is the exception: only a service
#: that turned the request away says when to come back.
NOT_STARTED = frozenset({501, 505, 511, 521, 522, 523, 525, 526, 530})

_RETRY_WITH_CARE = (
    "HealthEx may have started the update, and a second request may bill a second retrieval. Check whether data "
    "arrives, or whether the usage summary counts it, before you request it again."
)

_ERRORS: dict[int, type[HealthExApiError]] = {
    401: HealthExAuthenticationError,
    403: HealthExPermissionError,
    404: HealthExNotFoundError,
    429: HealthExRateLimitError,
}

_VERDICTS = {401: "not authenticated", 403: "forbidden", 404: "not found", 429: "rate limited"}

_HINTS = {
    401: "The token is missing, invalid or expired: check the stored one, or the API key and its secret.",
    403: "The token must belong to a data-requestor (research organisation) user with access to the project.",
    404: "The project or something in it is unknown, or not accessible with this token.",
    429: "HealthEx limits requests: retry later, or send fewer at once.",
}


def judge(call: Call, outcome: Answer | NoAnswer | NotSent, base_url: str, secrets: Iterable[str]) -> Answer | Failure:
    """
    Return a whole 2xx answer as it is, and a failure for everything else.

    :param base_url: named where the service was never reached.
    :param secrets: values that no error may repeat.
    """
    if isinstance(outcome, NotSent):
        return _not_sent(call, outcome, base_url)
    if isinstance(outcome, NoAnswer):
        return _no_answer(call, outcome)
    if outcome.status // 100 != 2:
        return _refused(call, outcome, (*secrets, *call.private))
    if outcome.flaw is None:
        return outcome
    if outcome.too_long or call.repeat is Repeat.BILLED:
        return Failure(unreadable(call, outcome, f"the answer is {outcome.flaw}"))
    return Failure(
        HealthExConnectionError(f"{call.subject} got no whole answer: {outcome.flaw}. It is safe to retry."),
        repeat=outcome.timed_out and call.repeat is Repeat.FREE,
    )


def unreadable(call: Call, answer: Answer, what: str) -> HealthExUpdateAmbiguousError | HealthExApiError:
    """Return the error for a 2xx answer of which nothing can be made; its body is never repeated."""
    if call.repeat is Repeat.BILLED:
        return HealthExUpdateAmbiguousError(
            f"{call.subject} is ambiguous (HTTP {answer.status}): {what}. {_RETRY_WITH_CARE} ({call})",
            status_code=answer.status,
            requested_at=requested_at(answer),
        )
    return HealthExApiError(
        f"{call.subject} failed (HTTP {answer.status}): {what}. Check that the host is HealthEx's API. ({call})",
        status_code=answer.status,
    )


def requested_at(answer: Answer) -> datetime:
    """Return the moment of the request, from which on data is fresh."""
    return request_moment(answer.date, answer.began, answer.seconds)


def _not_sent(call: Call, outcome: NotSent, base_url: str) -> Failure:
    advice = (
        "Check the certificate, the setting verify and the CA bundle."
        if outcome.certificate
        else "It is safe to retry; check the host, the network and the proxy."
    )
    return Failure(
        HealthExConnectionError(f"{call.subject} not sent: {outcome.reason} ({base_url} was never reached). {advice}"),
        repeat=not outcome.certificate,
    )


def _no_answer(call: Call, outcome: NoAnswer) -> Failure:
    status = f"HTTP {outcome.status}, " if outcome.status else ""
    if call.repeat is Repeat.BILLED:
        return Failure(
            HealthExUpdateAmbiguousError(
                f"{call.subject} is ambiguous ({status}no readable answer): {outcome.reason}. {_RETRY_WITH_CARE}",
                status_code=outcome.status,
                requested_at=whole(outcome.began),
            )
        )
    return Failure(
        HealthExConnectionError(
            f"{call.subject} got no readable answer: {status}{outcome.reason}. It is safe to retry."
        ),
        repeat=outcome.timed_out and call.repeat is Repeat.FREE,
    )


def _refused(call: Call, answer: Answer, secrets: Iterable[str]) -> Failure:
    status, words = answer.status, detail(answer.body, secrets)
    now = answer.date or datetime.now(timezone.utc)
    wait = retry_after(answer.headers.get("Retry-After"), now)
    turned_away = status == 503 and wait is not None
    if call.repeat is Repeat.BILLED and status >= 500 and status not in NOT_STARTED and not turned_away:
        text = _sentence(f"{call.subject} is ambiguous (HTTP {status})", words)
        return Failure(
            HealthExUpdateAmbiguousError(
                f"{text} {_RETRY_WITH_CARE} ({call})", status_code=status, requested_at=requested_at(answer)
            )
        )
    kind = _ERRORS.get(status) or _kind(status)
    verdict = call.verdicts.get(status) or f"{call.subject} {_verdict(status)}"
    hint = call.hint.get(status) or _HINTS.get(status) or _general_hint(answer)
    text = " ".join(filter(None, (_sentence(f"{verdict} (HTTP {status})", words), hint, f"({call})")))
    return Failure(
        kind(text, status_code=status, detail=words, retry_after=wait),
        repeat=status == 429 or turned_away or (status >= 500 and call.repeat is Repeat.FREE),
        wait=wait,
        turned_away=status == 429 or turned_away,
    )


def _sentence(verdict: str, words: str) -> str:
    text = f"{verdict}: {words}" if words else verdict
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _verdict(status: int) -> str:
    if status in _VERDICTS:
        return _VERDICTS[status]
    if 300 <= status < 400:
        return "redirected"
    return "rejected" if status < 500 else "failed"


def _kind(status: int) -> type[HealthExApiError]:
    if 400 <= status < 500:
        return HealthExRequestError
    return HealthExServerError if status >= 500 else HealthExApiError


def _host(location: str) -> str:
    """Return the host alone: the rest may hold a signature, or repeat what was sent."""
    try:
        return clean(urlsplit(location).hostname or "")
    except ValueError:
        return ""


def _general_hint(answer: Answer) -> str:
    if 300 <= answer.status < 400:
        host = _host(answer.headers.get("Location") or "")
        return f"Redirects are never followed{f' (to {host})' if host else ''}: check the host."
    return "The service failed: retry later." if answer.status >= 500 else ""
