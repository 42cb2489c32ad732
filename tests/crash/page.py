"""docs/crashes.md: the tables in it, as the last run of all scenarios found them."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from testing import Unavailable, postgres
from tests.crash.cluster import CELERY, LOCAL
from tests.crash.run import Expected, Outcome
from tests.crash.scenarios import Result

PAGE = Path(__file__).parents[2] / "docs" / "crashes.md"

BEGIN, END = "<!-- results: written by `make crash` -->", "<!-- end of results -->"

_MEASURED_FROM = {0: "none of the requests", 1: "first request", 2: "second request", None: "no result"}

_COLUMNS = ("What happens", "When", "Patients", "Requested", "Accepted", "`requested_at`", "Run", "Tries", "Verdict")


def as_text(outcome: Outcome | None) -> str:
    """Return an outcome in a line."""
    if outcome is None:
        return "broke off"
    since = _MEASURED_FROM.get(outcome.since, str(outcome.since))
    return (
        f"requested {_times(outcome.requested)}, accepted {_times(outcome.accepted)}, "
        f"requested_at: {since}, run: {outcome.ends}, tries: {outcome.tries}"
    )


def expected_as_text(expected: Expected) -> str:
    """Return what must come of a run in a line."""
    unsent = f", {expected.unsent} patient may be left out" if expected.unsent else ""
    since, ends = _MEASURED_FROM[expected.since], expected.ends
    return f"requested and accepted {expected.requested}{unsent}, requested_at: {since}, run: {ends}"


def write(results: Sequence[Result]) -> None:
    """Write results into the page, in place of earlier ones."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{_body(results)}\n\n{END}{after}")


def _body(results: Sequence[Result]) -> str:
    right = sum(each.is_right for each in results)
    packages = ("apache-airflow", "apache-airflow-task-sdk", "apache-airflow-providers-celery", "celery")
    parts = [
        (
            f"{right} of {len(results)} scenarios ended as expected, on {datetime.now(timezone.utc):%Y-%m-%d} with "
            f"{', '.join(_version(each) for each in packages)}, {_servers()} and Python {platform.python_version()}."
        )
    ]
    for executor in (LOCAL, CELERY):
        rows = [_row(each) for each in results if each.scenario.executor == executor]
        parts += [f"### {executor}", "\n".join([_line(_COLUMNS), _line(["---"] * len(_COLUMNS)), *rows])]
    return "\n\n".join(parts)


def _row(result: Result) -> str:
    scenario, outcome = result.scenario, result.outcome
    found = ("", "", "", "broke off", "")
    if outcome:
        since = _MEASURED_FROM.get(outcome.since, str(outcome.since))
        found = (_times(outcome.requested), _times(outcome.accepted), since, outcome.ends, str(outcome.tries))
    verdict = "as expected" if result.is_right else f"**wrong**: expected {expected_as_text(scenario.expected)}"
    return _line((scenario.event.text, scenario.when, str(scenario.patients), *found, verdict))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _times(counts: Mapping[int, int]) -> str:
    """Return how often, with the number of patients where it isn't the same for all."""
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{times} (of {patients})" for times, patients in sorted(counts.items(), reverse=True))


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"


def _servers() -> str:
    servers = []
    with contextlib.suppress(OSError, Unavailable):
        servers.append(f"PostgreSQL {postgres.version()}")
    with contextlib.suppress(OSError):
        shown = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
        servers.append(f"Redis {shown.partition('v=')[2].split()[0]}")
    return ", ".join(servers)
