"""The command ``healthex-check``."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_healthex.check.run import Settings

#: Ended by Ctrl-C, as a shell reports it.
INTERRUPTED = 130


def script() -> int:
    """Run the command as a process of its own, where Airflow's chatter may be turned down."""
    with suppress(ImportError):  # Airflow 3; 2.11 logs by `logging` alone
        import structlog

        importlib.import_module("airflow_provider_healthex.check.run")  # Airflow sets its logging up on import
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return main()


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit code: 0, 1 with a failure, 2 for bad arguments, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = _settings(parser, options)
        return _run(settings, options)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="healthex-check",
        description="Prove a HealthEx account and its deliveries, with Airflow's connections. Bills nothing unless "
        "--refresh is given and answered with yes. Reads listings alone, never a file's content.",
    )
    parser.add_argument("--healthex-conn-id", default="healthex_default", metavar="ID", help="(%(default)s)")
    parser.add_argument("--bucket", help="where HealthEx delivers to S3; or s3://BUCKET/PATH as --path")
    parser.add_argument("--aws-conn-id", default="aws_default", metavar="ID", help="(%(default)s)")
    parser.add_argument("--sftp-conn-id", metavar="ID", help="where HealthEx delivers to an SFTP server")
    parser.add_argument("--path", help="a path to compare with the store, as bucket_key has it")
    parser.add_argument("--project", metavar="ID", help="(the connection's)")
    parser.add_argument("--external-ids", type=Path, metavar="FILE", help="the study's own patient ids, one a line")
    parser.add_argument("--max-requests", type=_count, default=200, metavar="N", help="of the listing (%(default)s)")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--show-ids", action="store_true", help="print ids in full")
    billed = parser.add_argument_group("one real update, which HealthEx bills")
    billed.add_argument("--refresh", metavar="PATIENT", help="request it, after a yes, and watch the delivery")
    billed.add_argument("--yes", action="store_true", help="the yes, where nobody can type it")
    billed.add_argument("--out", type=Path, metavar="DIR", help="write the picture timeline.svg there")
    billed.add_argument("--quiet-period", type=_seconds, metavar="S",
                        help="seconds without a change that end the watch (the advice's, else 300)")  # fmt: skip
    billed.add_argument("--timeout", type=_seconds, default=6 * 60 * 60.0, metavar="S",
                        help="seconds until the watch ends anyway (%(default)g)")  # fmt: skip
    return parser


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {text})")
    return count


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0 (got {text})")
    return seconds


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Settings:
    # Connections of Airflow's database are read by its server side alone; `airflow connections` does the same.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    logging.getLogger("airflow").setLevel(logging.WARNING)
    from airflow_provider_healthex.check.run import Settings, read_ids

    bucket, path = options.bucket, options.path
    if path and path.startswith("s3://"):
        named = path.removeprefix("s3://").partition("/")[0]
        if bucket not in (None, named):
            parser.error(f"--bucket is {bucket!r} and --path names the bucket {named!r}: give one")
        bucket = named
    if bucket and options.sftp_conn_id:
        parser.error("give --bucket or --sftp-conn-id, not both")
    try:
        external = read_ids(options.external_ids) if options.external_ids else frozenset()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--external-ids can't be read: {type(error).__name__}")
    return Settings(
        healthex_conn_id=options.healthex_conn_id,
        bucket=bucket,
        aws_conn_id=options.aws_conn_id,
        sftp_conn_id=options.sftp_conn_id,
        path=path,
        project=options.project,
        external_ids=external,
        max_requests=options.max_requests,
        show_ids=options.show_ids,
    )


def _run(settings: Settings, options: argparse.Namespace) -> int:
    from airflow_provider_healthex.check.run import Check

    check = Check(settings)
    # Airflow 3 prints its log to stdout, which is the report's.
    with redirect_stdout(sys.stderr):
        report = check.run()
    if options.refresh:
        if not options.json:
            print(report.text(), flush=True)
            print()
        with _live(options) as show, redirect_stdout(sys.stderr):
            check.refresh(
                options.refresh,
                confirm=_confirm(options),
                show=show,
                quiet_period=options.quiet_period,
                timeout=options.timeout,
                out=options.out,
            )
        if not options.json:
            print(f"\n{report.text(since=8)}", flush=True)
    elif not options.json:
        print(report.text(), flush=True)
    if options.json:
        print(report.json(), flush=True)
    if report.interrupted:
        return INTERRUPTED
    return 1 if report.has_failed() else 0


def _confirm(options: argparse.Namespace) -> Callable[[str], bool]:
    def confirm(text: str) -> bool:
        if options.yes:
            return True
        if not sys.stdin.isatty():
            print(f"{text}Nobody can type yes here: give --yes.", file=sys.stderr)
            return False
        print(f"{text}Type yes to request it: ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip() == "yes"

    return confirm


@contextmanager
def _live(options: argparse.Namespace) -> Iterator[Callable[[str], None]]:
    """Show what happens: live on a terminal, else as lines; with --json not on stdout."""
    import time

    start = time.monotonic()

    def stamped(text: str) -> str:
        return f"{time.monotonic() - start:6.0f} s  {text}"

    if options.json or not sys.stdout.isatty():
        out = sys.stderr if options.json else sys.stdout
        yield lambda text: print(stamped(text), file=out, flush=True)
        return
    from rich.console import Console

    console = Console(file=sys.stdout)
    # No more than a spinner below the lines: they stay in the scroll-back when it ends.
    with console.status("watching the store; Ctrl-C ends it and keeps the report") as status:
        status.stop()

        def show(text: str) -> None:
            status.start()
            console.print(stamped(text), highlight=False, markup=False)

        yield show


if __name__ == "__main__":
    sys.exit(script())
