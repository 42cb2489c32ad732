"""Steps 1 to 3: the HealthEx connection, its token, and what the service answers. Nothing here is billed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies

from airflow_provider_healthex.check.report import Report
from airflow_provider_healthex.check.words import duration, plural
from airflow_provider_healthex.client.calls import LONG, Call
from airflow_provider_healthex.client.classify import not_sent
from airflow_provider_healthex.client.headers import TOLERATED_SKEW
from airflow_provider_healthex.client.models import harmless, moment
from airflow_provider_healthex.client.settings import ApiKey, ClientSettings
from airflow_provider_healthex.client.transport import NoAnswer, NotSent, Transport
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError
from airflow_provider_healthex.hooks.connection import client_settings, find_connection
from airflow_provider_healthex.hooks.healthex import HealthExHook

#: A stored token that ends sooner is worth a warning.
ENDS_SOON = timedelta(days=1)


@dataclass
class Account:
    """
    What steps 1 to 3 learned.

    :param hook: of the connection.
    :param project_id: the project, None where there is none.
    :param organization_id: the value of ``{orgId}``.
    :param patients: HealthEx's ids of those who consented; None where they couldn't be listed.
    :param ahead: seconds by which HealthEx's clock is ahead of this machine's.
    """

    hook: HealthExHook
    project_id: str | None = None
    organization_id: str | None = None
    patients: list[str] | None = None
    ahead: float | None = None
    settings: ClientSettings | None = field(default=None, repr=False)


def check_account(report: Report, conn_id: str, project: str | None) -> Account:
    """Take steps 1 to 3; each goes on as far as it can."""
    account = Account(HealthExHook(conn_id))
    _connection(report, account, conn_id)
    if account.settings is None or report.has_failed(1):
        _find_project(report, account, project)
        report.skip(2, "not checked: the connection must be usable first")
        report.skip(3, "not checked: the connection must be usable first")
        return account
    _token(report, account)
    _find_project(report, account, project)
    if report.has_failed(2):
        report.skip(3, "not checked: the token must be usable first")
        return account
    _service(report, account)
    return account


def _connection(report: Report, account: Account, conn_id: str) -> None:
    try:
        account.hook.get_conn()
        account.settings = settings = client_settings(find_connection(conn_id, retry=False))
    except HealthExError as error:
        report.fail(1, str(error))
        return
    way = "API key and secret" if isinstance(settings.credentials, ApiKey) else "a stored token"
    report.ok(1, f"Connection {conn_id!r} is complete: {way}, {_shown(settings.base_url)}")
    _reach(report, account, settings)


def _reach(report: Report, account: Account, settings: ClientSettings) -> None:
    """Reach the host without a token, which shows TLS, proxy and clock."""
    host, parts = _shown(settings.base_url), urlsplit(settings.base_url)
    proxy = get_environ_proxies(settings.base_url).get(parts.scheme)
    call, transport = Call("GET", "/FHIR/R4/metadata", subject=f"Request to {host}", limit=LONG), Transport(settings)
    try:
        answer = transport.send(call, None)
    except NotSent as error:
        report.fail(1, str(not_sent(call, error, settings.base_url).error))
        return
    except NoAnswer as error:
        report.fail(1, f"{host} got the request and sent no readable answer: {error}", "check the host and the proxy")
        return
    except HealthExConfigurationError as error:
        report.fail(1, str(error))
        return
    finally:
        transport.close()
    if answer.status // 100 == 3:
        report.fail(1, f"{host} redirects, and redirects are never followed", "correct the host")
        return
    secure = "TLS is verified" if parts.scheme == "https" and settings.verify is not False else "unencrypted"
    through = " through the environment's proxy" if proxy else ""
    report.ok(1, f"{host} answers{through}: {secure}")
    if not answer.skew:  # to the microsecond: the answer has no Date
        report.warn(1, f"{host} doesn't report its clock", "keep this machine's right: requested_at follows it")
        return
    account.ahead = answer.skew.total_seconds()
    compare_clocks(report, 1, "HealthEx's clock", account.ahead)


def compare_clocks(report: Report, step: int, name: str, ahead: float) -> None:
    """Add a line about a clock."""
    if abs(ahead) > TOLERATED_SKEW.total_seconds():
        report.warn(step, f"{name} is {ahead:+,.0f} s from this machine's", "set this machine's clock right")
    else:
        report.ok(step, f"{name} agrees with this machine's to {max(1, round(abs(ahead)))} s")


def _shown(url: str) -> str:
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def _token(report: Report, account: Account) -> None:
    client = account.hook.get_conn()
    try:
        claims = client.token_claims()
        account.organization_id = client.organization_id
    except HealthExError as error:
        report.fail(2, str(error))
        return
    report.shortener.learn([account.organization_id])
    if not claims:
        report.ok(2, "The token is no JWT: it is used as it is, and its expiry is unknown")
    else:
        report.ok(2, f"Token of type {harmless(claims.get('type')) or 'unknown'}, permissions {_permissions(claims)}")
        _time_left(report, account, claims)
    if account.organization_id:
        report.ok(2, f"The organization, for {{orgId}}, is {account.organization_id}")
    else:
        report.warn(2, "The token has no organization", "set org_id in the connection's Extra if the path has {orgId}")


def _permissions(claims: Any) -> str:
    given = claims.get("permissions")
    names = [harmless(name) for name in given if harmless(name)] if isinstance(given, list) else []
    return ", ".join(filter(None, names)) or "unknown"


def _time_left(report: Report, account: Account, claims: Any) -> None:
    assert account.settings is not None
    expires = moment(claims.get("exp"))
    if expires is None:
        report.warn(2, "The token has no expiry", "once HealthEx answers 401, store a new one")
        return
    left = expires - datetime.now(timezone.utc)
    if isinstance(account.settings.credentials, ApiKey):
        report.ok(2, f"It expires in {duration(left.total_seconds())}; each task requests its own")
    elif left < ENDS_SOON:
        report.warn(
            2,
            f"The stored token expires in {duration(left.total_seconds())}",
            "store an API key and its secret",
        )
    else:
        report.ok(2, f"The stored token expires in {duration(left.total_seconds())}")


def _find_project(report: Report, account: Account, project: str | None) -> None:
    try:
        account.project_id = account.hook.resolve_project_id(project)
    except HealthExError as error:
        if not report.has_failed(1):
            report.fail(1, str(error), "give --project, or set project_id in the connection's Extra")
    report.shortener.learn([account.project_id])


def _service(report: Report, account: Account) -> None:
    try:
        account.hook.get_conn().capability_statement()
        report.ok(3, "HealthEx accepts the token")
    except HealthExError as error:
        report.fail(3, str(error))
        return
    if account.project_id is None:
        report.skip(3, "patients not listed: there is no project")
        return
    try:
        consented = account.hook.list_consented_patients(project_id=account.project_id)
    except HealthExError as error:
        report.fail(3, str(error))
        return
    account.patients = [each.patient_id for each in consented]
    report.shortener.learn(account.patients)
    if not consented:
        report.warn(3, f"Project {account.project_id} has 0 consented patients", "add and invite patients first")
        return
    report.ok(3, f"Project {account.project_id} can be read: {plural(len(consented), 'consented patient')}")
    _consents(report, [each.expires_at for each in consented])


def _consents(report: Report, ends: list[datetime | None]) -> None:
    now = datetime.now(timezone.utc)
    days = [(end - now) / timedelta(days=1) for end in ends if end is not None]
    over = sum(left <= 0 for left in days)
    soon, later = (sum(0 < left <= limit for left in days) for limit in (30, 90))
    unknown = len(ends) - len(days)
    parts = [f"Consents that end within 30 days: {soon:,}, within 90 days: {later:,}", f"already ended: {over:,}"]
    parts += [f"with an unknown end: {unknown:,}"] if unknown else []
    text = ", ".join(parts)
    if soon or over:
        report.warn(3, text, "contact these patients before a refresh: docs/reconsent.md")
    else:
        report.ok(3, text)
