"""Sends calls: within the rate limit, with a token, retried where that is safe, and until it is cancelled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from airflow_provider_healthex.client import classify
from airflow_provider_healthex.client.calls import Call, RetryEffect
from airflow_provider_healthex.client.cancel import CancelEvent
from airflow_provider_healthex.client.headers import IMPLAUSIBLE_SKEW, TOLERATED_SKEW
from airflow_provider_healthex.client.rate_limit import rate_limit_for
from airflow_provider_healthex.client.redaction import Secrets
from airflow_provider_healthex.client.retries import FailedTry, retried
from airflow_provider_healthex.client.settings import ClientSettings
from airflow_provider_healthex.client.transport import Answer, NoAnswer, NotSent, Transport
from airflow_provider_healthex.exceptions import HealthExAuthenticationError

log = logging.getLogger(__name__)

#: Makes a context in which one try is sent, entered after every wait that precedes it.
InFlight = Callable[[], AbstractContextManager[None]]


class TokenSource(Protocol):
    """The source of the bearer token."""

    def current(self) -> str:
        """Return a token that is valid now, or raise `HealthExTokenError`."""

    def discard(self, token: str) -> bool:
        """Forget a token that HealthEx rejected; return whether there can be another."""


class Sender:
    """Sends the calls of one client."""

    def __init__(self, settings: ClientSettings, secrets: Secrets, cancelled: CancelEvent, tries: int | None) -> None:
        self.settings = settings
        self.secrets = secrets
        self.cancelled = cancelled
        self.transport = Transport(settings)
        self.rate_limit = rate_limit_for((settings.base_url, settings.credentials))
        self._tries = tries
        self._skew_logged = False

    def send(
        self,
        call: Call,
        tokens: TokenSource | None = None,
        *,
        cancelled: CancelEvent | None = None,
        in_flight: InFlight = nullcontext,
    ) -> Answer:
        """
        Return a whole 2xx answer.

        :param tokens: None sends no token.
        :param cancelled: where a part of the work can be cancelled alone.
        """
        cancelled = cancelled or self.cancelled
        tries = _Tries(self, call, tokens, cancelled, in_flight)
        return retried(
            tries.send, subject=call.subject, rate_limit=self.rate_limit, cancelled=cancelled, tries=self._tries
        )

    def log_skew(self, skew: timedelta) -> None:
        """Log once that a clock is wrong: a cohort has thousands of answers."""
        if abs(skew) <= TOLERATED_SKEW or self._skew_logged:
            return
        self._skew_logged = True
        if abs(skew) < IMPLAUSIBLE_SKEW:
            text = "HealthEx's clock is %+.0f s from this machine's. requested_at follows HealthEx's clock."
        else:
            text = "The Date of HealthEx's answer is %+.0f s from this machine's clock, and is ignored."
        log.warning(f"{text} Check this machine's clock.", skew.total_seconds())


@dataclass
class _Tries:
    """The tries of one call."""

    sender: Sender
    call: Call
    tokens: TokenSource | None
    cancelled: CancelEvent
    in_flight: InFlight
    may_replace_token: bool = True

    def send(self) -> Answer:
        """Try once; a requested token that HealthEx rejects is replaced once."""
        if self.tokens is None:
            return self._send(None)
        token = self.tokens.current()
        try:
            return self._send(token)
        except FailedTry as failed:
            rejected = isinstance(failed.error, HealthExAuthenticationError)
            if not (rejected and self.may_replace_token and self.tokens.discard(token)):
                raise
        self.may_replace_token = False
        return self._send(self.tokens.current())

    def _send(self, token: str | None) -> Answer:
        sender, call = self.sender, self.call
        sender.rate_limit.wait(sender.settings.requests_per_second, self.cancelled)
        with self.in_flight():
            try:
                answer = sender.transport.send(call, token)
            except NotSent as error:
                raise classify.not_sent(call, error, sender.settings.base_url) from None
            except NoAnswer as error:
                raise classify.no_answer(call, error) from None
            if call.retry_effect is RetryEffect.BILLED:
                sender.log_skew(answer.skew)
            classify.check(call, answer, sender.secrets)
            return answer
