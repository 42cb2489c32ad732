from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_healthex.client.headers import http_date, request_moment, retry_after, skew

UTC = timezone.utc
NOW = datetime(2026, 11, 22, 17, 40, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        (" 7 ", 7),
        ("Sun, 22 Nov 2026 17:41:05 GMT", 60),
        ("Sun, 22 Nov 2026 17:40:04 GMT", 0),
        ("Sun, 22 Nov 2026 18:40:06 +0100", 1),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("9" * 400, None),
        ("", None),
        (None, None),
        ("Sun, 99 Nov 2026 17:41:05 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_forms(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, NOW) == seconds


def test_a_date_without_a_zone_is_utc() -> None:
    assert http_date("Sun, 22 Nov 2026 17:40:05 -0000") == NOW
    assert http_date("Sun, 22 Nov 2026 17:40:05") == NOW


def test_requested_at_is_the_services_clock_minus_the_time_the_try_took() -> None:
    began = NOW - timedelta(hours=1)
    assert request_moment(NOW, began, 2.2) == NOW - timedelta(seconds=3)


def test_without_a_date_requested_at_is_the_workers_clock_before_the_try() -> None:
    assert request_moment(None, NOW + timedelta(seconds=0.9), 5) == NOW


def test_requested_at_is_utc() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))
    assert request_moment(None, elsewhere, 0).isoformat() == "2026-11-22T17:40:05+00:00"


@pytest.mark.parametrize("ahead", [1, -1])
def test_a_date_counts_up_to_a_day_from_the_workers_clock(ahead: int) -> None:
    almost = NOW + ahead * timedelta(hours=23, minutes=59)
    assert request_moment(almost, NOW, 0) == almost
    assert request_moment(NOW + ahead * timedelta(days=1), NOW, 0) == NOW


@pytest.mark.parametrize("date", [datetime.min, datetime.max])
def test_a_date_no_clock_can_show_is_ignored(date: datetime) -> None:
    assert request_moment(date.replace(tzinfo=UTC), NOW, 5) == NOW


def test_the_skew_leaves_out_the_time_the_try_took() -> None:
    assert skew(NOW + timedelta(seconds=90), NOW, 30) == timedelta(seconds=60)
    assert skew(None, NOW, 30) == timedelta(0)
