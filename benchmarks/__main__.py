"""``python -m benchmarks [name …] [--json] [--write]``: run benchmarks and show what they found."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from unittest import mock

from benchmarks.report import Report, as_text, machine, page
from testing import Unavailable

#: In the order of their reports. The second part says whether it runs when none is named.
NAMES = {
    "updating": True,
    "waiting": True,
    "feed": True,
    "sftp": True,
    "refresh": True,
    "deciding": True,
    "imports": True,
    "scale": False,
}

RESULTS = Path(__file__).with_name("RESULTS.md")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for, and return 1 if a target was missed."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # what was started is stopped on the way out
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as home:
        # Before Airflow is imported: nothing of an Airflow that is in use is read or written.
        own = {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING"}
        with mock.patch.dict(os.environ, own):
            return _run(options)


def _run(options: argparse.Namespace) -> int:
    names = options.names or [name for name, usual in NAMES.items() if usual]
    reports: list[Report] = []
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            report: Report = importlib.import_module(f"benchmarks.{name}").run()
        except Unavailable as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        reports.append(report)
        if not options.json:
            print(f"\n{as_text(report)}\n", flush=True)
    if options.json:
        print(json.dumps({"machine": machine(), "reports": [asdict(report) for report in reports]}, indent=1))
    if options.write:
        RESULTS.write_text(page(reports))
        for report in reports:
            if report.chart:
                RESULTS.with_name(f"{report.name}.svg").write_text(report.chart)
    return 1 if any(report.met is False for report in reports) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    usual = ", ".join(name for name, runs in NAMES.items() if runs)
    parser.add_argument(
        "names", nargs="*", choices=[*NAMES, []], metavar="name", help=f"of {', '.join(NAMES)} ({usual})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md and its charts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
