"""Readers of the example DAGs' mails: patients follow their link."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import requests

from airflow_provider_healthex.sandbox.patients import external_id_of

LINK = re.compile(r'http://[^"<\s]+/link/[\w.-]+')


def address_of(patient_id: str) -> str:
    """Return what the examples take for a patient's mail address."""
    return f"{external_id_of(patient_id)}@patients.example"


def links(sandbox: Any) -> dict[str, str]:
    """Return the links that were mailed, by recipient."""
    return {mail.recipient: found[0] for mail in sandbox.mails if (found := LINK.search(mail.text))}


def follow(link: str) -> None:
    """Sign in and consent, on the page behind a patient's link."""
    page = requests.get(link, timeout=10)
    assert '<form method="post">' in page.text
    assert requests.post(link, timeout=10).ok


@contextlib.contextmanager
def people(sandbox: Any, on_mail: Callable[[Any], None]) -> Iterator[None]:
    """Read each mail as it comes."""
    over = threading.Event()

    def read() -> None:
        seen = 0
        while not over.wait(0.05):
            for mail in sandbox.mails[seen:]:
                seen += 1
                on_mail(mail)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()


def follow_the_link(mail: Any) -> None:
    """Follow the link of a patient's mail."""
    follow(LINK.search(mail.text)[0])
