from __future__ import annotations

import smtplib
import socket
from email.message import EmailMessage

import pytest
import requests
from airflow.providers.smtp.hooks.smtp import SmtpHook

from airflow_provider_healthex.sandbox import Sandbox
from airflow_provider_healthex.sandbox.mail import Mail

from .conftest import no_thread_left


def connected(sandbox: Sandbox) -> smtplib.SMTP:
    connection = sandbox.smtp_connection()
    return smtplib.SMTP(connection["host"], connection["port"], timeout=10)


def send(sandbox: Sandbox, *recipients: str, subject: str = "Hello", text: str = "There.") -> None:
    message = EmailMessage()
    message["Subject"] = subject
    message.set_content(text)
    with connected(sandbox) as smtp:
        smtp.sendmail("study@sandbox.example", recipients, message.as_bytes())


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


def test_stopping_ends_who_is_still_connected():
    with no_thread_left(), Sandbox(age_old_deliveries=False) as sandbox:
        smtp = connected(sandbox)
        port = sandbox.smtp_connection()["port"]
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


@pytest.mark.parametrize("address", ["0.0.0.0", "::1"])
def test_it_is_reached_where_the_connection_says(address):
    sandbox = Sandbox(bind=address, age_old_deliveries=False)
    if address == "0.0.0.0":
        with pytest.warns(UserWarning, match="listens on"):
            sandbox.start()
    else:
        sandbox.start()
    try:
        send(sandbox, "a@patients.example")
        assert len(sandbox.mails) == 1
    finally:
        sandbox.stop()
