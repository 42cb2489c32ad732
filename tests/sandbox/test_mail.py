from __future__ import annotations

import base64
import hashlib
import re
import smtplib
import socket
from email.message import EmailMessage
from html.parser import HTMLParser

import pytest
import requests
from airflow.providers.smtp.hooks.smtp import SmtpHook
from helpers.sandbox import no_thread_left

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.mail import Mail
from airflow_provider_healthex.sandbox.wsgi import LARGEST


def connected(sandbox: Sandbox) -> smtplib.SMTP:
    connection = sandbox.connections()["smtp_default"]
    return smtplib.SMTP(connection["host"], connection["port"], timeout=10)


def send(
    sandbox: Sandbox, *recipients: str, subject: str = "Hello", text: str = "There.", html: str | None = None
) -> None:
    message = EmailMessage()
    message["Subject"] = subject
    if html is None:
        message.set_content(text)
    else:
        message.set_content(html, subtype="html")
    with connected(sandbox) as smtp:
        smtp.send_message(message, "study@sandbox.example", recipients)


def test_airflows_hook_sends_to_it(healthex_sandbox):
    with SmtpHook() as smtp:
        smtp.send_email_smtp(to="a@patients.example", subject="Grüße", html_content="<p>Grüße &amp; more</p>")
    (mail,) = healthex_sandbox.mails
    assert (mail.recipient, mail.subject) == ("a@patients.example", "Grüße")
    assert mail.text == "<p>Grüße &amp; more</p>"


def test_mails_are_listed_in_their_order_one_for_each_recipient(sandbox):
    send(sandbox, "a@patients.example", "b@patients.example")
    send(sandbox, "c@patients.example", subject="Again", text="A line.\nÄnother.\n")
    assert [mail.recipient[0] for mail in sandbox.mails] == ["a", "b", "c"]
    assert sandbox.mails[2] == Mail("c@patients.example", "Again", "A line.\nÄnother.")


def test_the_control_api_shows_them(sandbox):
    send(sandbox, "a@patients.example")
    shown = requests.get(f"{sandbox.api_url}/_sandbox/mails", timeout=10).json()
    assert shown == [{"recipient": "a@patients.example", "subject": "Hello", "text": "There."}]


BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def mailbox(sandbox: Sandbox) -> requests.Response:
    return requests.get(f"{sandbox.api_url}/_sandbox/mails", headers=BROWSER, timeout=10)


class Elements(HTMLParser):
    """The elements of a page, and the addresses it links to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str | None] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "a":
            self.addresses.append(dict(attrs)["href"])


def test_a_browser_gets_a_page_whose_links_can_be_clicked(sandbox, call):
    link = call("POST", "/v1/projects/project-demo/link", json={"externalId": "ext-consent-expired"}).text
    send(sandbox, "a@patients.example", text=f"Please sign in: {link}.")
    html = f'<p>Please &amp; soon</p>\n<p><a href="{link}">{link}</a>\nor <a href="{link}">this</a></p>'
    send(sandbox, "b@patients.example", html=html)
    page = mailbox(sandbox)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Vary"] == "Accept"
    assert Elements(page.text).addresses == [link, link, link]
    assert page.text.index("b@patients.example") < page.text.index("a@patients.example")
    assert "Please &amp; soon\n" in page.text
    patient_page = requests.get(Elements(page.text).addresses[0], headers=BROWSER, timeout=10)
    assert "Sign in and consent" in patient_page.text


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, text/html;q=0.9", None])
def test_a_program_gets_json(sandbox, accept):
    send(sandbox, "a@patients.example")
    answer = requests.get(f"{sandbox.api_url}/_sandbox/mails", headers={"Accept": accept}, timeout=10)
    assert answer.json()[0]["recipient"] == "a@patients.example"


def test_a_page_without_mails_says_so(sandbox):
    assert "No mail yet." in mailbox(sandbox).text


HOSTILE = """<script>alert(1)</script><style>p{}</style><img src=x onerror=alert(1)><svg onload=alert(1)>
<a href="javascript:alert(1)">js</a><a href="data:text/html,x">data</a><a href=" http://x/&quot;onclick=alert(1) ">quote
</a><a href="http://x/"><b>never ended<iframe src=http://x></iframe><base href=http://x><form action=http://x><input>
<!-- <script> --> &lt;script&gt;alert(2)&lt;/script&gt; http://x/"><script>alert(3)</script>"""


@pytest.mark.parametrize("kind", ["text", "html"])
def test_nothing_of_a_mail_becomes_a_part_of_the_page(sandbox, kind):
    send(sandbox, "a@patients.example", **{kind: HOSTILE}, subject="<script>alert(4)</script>")
    page = mailbox(sandbox)
    found = Elements(page.text)
    assert found.elements == {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "p", "article", "div", "h2", "a",
    }  # fmt: skip
    assert not [name for name in found.attributes if name.startswith("on")]
    assert all(address.startswith("http://x") for address in found.addresses)
    assert "&lt;script&gt;alert(4)" in page.text


@pytest.mark.parametrize("kind", ["text", "html"])
def test_any_bytes_can_be_shown(sandbox, kind):
    raw = b"Subject: \xff\xfe\r\nContent-Type: text/" + {"text": b"plain", "html": b"html"}[kind]
    with connected(sandbox) as smtp:
        smtp.sendmail(
            "study@sandbox.example", ["a@patients.example"], raw + b"; charset=utf-8\r\n\r\n\xff<a href=\xff>"
        )
    assert mailbox(sandbox).status_code == 200


def test_the_pages_run_no_script_and_load_nothing_from_elsewhere(sandbox, call):
    link = call("POST", "/v1/projects/project-demo/link", json={"externalId": "ext-consent-expired"}).text
    for page in (mailbox(sandbox), requests.get(link, timeout=10), requests.post(link, timeout=10)):
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        (style,) = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert page.headers["Cache-Control"] == "no-store"


def test_no_address_leaves_the_mailbox_by_a_referrer_and_the_patients_form_says_where_it_is_from(sandbox, call):
    assert mailbox(sandbox).headers["Referrer-Policy"] == "no-referrer"
    link = call("POST", "/v1/projects/project-demo/link", json={"externalId": "ext-consent-expired"}).text
    assert requests.get(link, timeout=10).headers["Referrer-Policy"] == "same-origin"


def test_a_mail_is_bounded(sandbox):
    with pytest.raises(smtplib.SMTPSenderRefused) as refused:  # its size is said first
        send(sandbox, "a@patients.example", text="x" * 70 + "\n" + ("x" * 70 + "\n") * (LARGEST // 70))
    assert refused.value.smtp_code == 552
    with connected(sandbox) as smtp:
        smtp.ehlo()
        del smtp.esmtp_features["size"]
        with pytest.raises(smtplib.SMTPDataError) as refused:
            smtp.sendmail("study@sandbox.example", ["a@patients.example"], (b"x" * 70 + b"\r\n") * (LARGEST // 70))
    assert refused.value.smtp_code == 552
    assert sandbox.mails == []


def test_a_reset_forgets_them(sandbox):
    send(sandbox, "a@patients.example")
    sandbox.reset()
    assert sandbox.mails == []


def test_a_mail_can_be_refused(sandbox):
    sandbox.faults.add("mail", 550, body="No such patient")
    with pytest.raises(smtplib.SMTPRecipientsRefused, match="No such patient"):
        send(sandbox, "a@patients.example")
    send(sandbox, "b@patients.example")
    assert [mail.recipient for mail in sandbox.mails] == ["b@patients.example"]


def test_one_address_can_be_refused(sandbox):
    sandbox.faults.add("mail", 550, patient_id="b@patients.example")
    send(sandbox, "a@patients.example", "b@patients.example")
    assert [mail.recipient for mail in sandbox.mails] == ["a@patients.example"]


def test_stopping_ends_open_connections():
    with no_thread_left(), Sandbox(earlier_deliveries=False) as sandbox:
        smtp = connected(sandbox)
        port = sandbox.connections()["smtp_default"]["port"]
    with pytest.raises(smtplib.SMTPServerDisconnected):
        smtp.docmd("NOOP")
    smtp.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_nothing_of_a_mail_is_logged(sandbox, caplog):
    caplog.set_level("DEBUG")
    send(sandbox, "a@patients.example", text="http://127.0.0.1/link/x")
    assert "patients.example" not in caplog.text
    assert "/link/x" not in caplog.text
