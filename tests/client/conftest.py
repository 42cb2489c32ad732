"""Every test starts as a new process would, with a scripted HealthEx on a loopback socket."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.loopback import SECRET, Service, make_jwt
from tenacity import wait_none

from airflow_provider_healthex.client import ApiKey, ClientSettings, HealthExClient, StoredToken, rate_limit, retries
from airflow_provider_healthex.client import token as tokens


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start every test as a new process would, without backoff, proxies and netrc."""
    monkeypatch.setattr(retries, "BACKOFF", wait_none())
    monkeypatch.setattr(tokens, "_shared_tokens", {})
    monkeypatch.setattr(rate_limit, "_rate_limits", {})
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)


@pytest.fixture
def connect(service: Service) -> Iterator[Callable[..., HealthExClient]]:
    """Make clients of the service: with a stored token, unless `credentials` says otherwise."""
    clients: list[HealthExClient] = []

    def make(*, on_secret: Any = None, **settings: Any) -> HealthExClient:
        chosen = {
            "base_url": service.url,
            "credentials": StoredToken(make_jwt()),
            "connect_timeout": 1,
            "read_timeout": 0.3,
            **settings,
        }
        extra = {} if on_secret is None else {"on_secret": on_secret}
        clients.append(HealthExClient(ClientSettings(**chosen), **extra))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[..., HealthExClient]) -> HealthExClient:
    return connect()


@pytest.fixture
def api_key() -> ApiKey:
    return ApiKey("key-1", SECRET)


@pytest.fixture
def tls_service(certificate: tuple[Path, Path]) -> Iterator[Service]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    running = Service(context)
    yield running
    running.close()
