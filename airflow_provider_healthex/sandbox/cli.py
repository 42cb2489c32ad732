"""The command ``healthex-sandbox``: ``serve``, ``patients``, ``demo`` and ``airflow``."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from typing import Any

from airflow_provider_healthex.sandbox import patients
from airflow_provider_healthex.sandbox.layouts import LAYOUTS

#: Modules of the extra ``sandbox``, and what delivery by SFTP needs besides.
EXTRA = ("aiosmtpd", "cryptography", "flask", "flask_cors", "moto", "public", "py_partiql_parser", "werkzeug", "yaml")
SFTP_EXTRA = ("asyncssh",)

S3_PORT = 9898
SFTP_PORT = 9822


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    options = vars(_parser().parse_args(arguments))
    try:
        code: int = options.pop("run")(**options)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA + SFTP_EXTRA:
            raise
        extras = "sandbox,sftp" if missing in SFTP_EXTRA else "sandbox"
        print(f"The sandbox needs {error.name}: pip install 'airflow-provider-healthex[{extras}]'", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="healthex-sandbox",
        description="A HealthEx-like API on this machine that delivers synthetic FHIR bundles to S3 or by SFTP.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the API, an S3 or SFTP server and a mailbox until Ctrl-C")
    serve.set_defaults(run=_serve)
    add = serve.add_argument
    add("--port", type=int, default=8989, help="of the API (%(default)s; 0: a free one)")
    _add_delivery(serve)
    add("--s3-port", type=int, help=f"of S3 ({S3_PORT}; 0: a free one)")
    add("--sftp-port", type=int, help=f"of SFTP ({SFTP_PORT}; 0: a free one)")
    add("--smtp-port", type=int, default=2525, help="of the mailbox (%(default)s; 0: a free one)")
    add("--delay", type=_seconds, default=3.0, metavar="S", help="from a request to its delivery (%(default)g)")
    add("--path", help="where deliveries go (the layout's); also {orgId} and {externalId}")
    layouts = "; ".join(f"{name}: {each.summary}" for name, each in LAYOUTS.items())
    add("--layout", choices=tuple(LAYOUTS), default="overwritten", metavar="NAME",
        help=f"how deliveries are laid out (%(default)s). {layouts}")  # fmt: skip
    add("--bucket", help="of S3, where deliveries go (healthex-deliveries)")
    add("--patients", dest="cohort", type=_count, default=0, metavar="N",
        help="so many more patients, patient-00001 and on, with outcomes drawn from the seed")  # fmt: skip
    add("--seed", type=int, default=0, help="of the outcomes and the spread (%(default)s)")
    add("--spread", type=_seconds, default=0.0, metavar="S",
        help="deliveries come within so many seconds after the delay (%(default)g)")  # fmt: skip
    add("--latency", type=_seconds, default=0.0, metavar="S", help="seconds every request takes (%(default)g)")
    add("--rate-limit", type=float, metavar="N", help="requests a second; above it 429 with Retry-After (no limit)")
    add("--no-earlier-deliveries", dest="earlier_deliveries", action="store_false", help="begin with nothing delivered")

    listing = commands.add_parser("patients", help="list the patients and the outcome of a request for each")
    listing.set_defaults(run=_patients)

    demo = commands.add_parser("demo", help="run an example DAG on the sandbox from end to end")
    demo.set_defaults(run=_demo)
    demo.add_argument("--dags-folder", default="example_dags", help="(%(default)s)")
    _add_delivery(demo)
    demo.add_argument("--dag", help="(refresh_patient, or refresh_patient_sftp)")
    demo.add_argument("--patient", default=patients.IN_PROGRESS, help="(%(default)s)")
    demo.add_argument("--airflow-home", help="where the demo's Airflow keeps its files (.airflow/demo)")

    airflow = commands.add_parser("airflow", help="run Airflow's UI with the sandbox behind it until Ctrl-C")
    airflow.set_defaults(run=_airflow)
    _add_delivery(airflow)
    airflow.add_argument("--dags-folder", default="example_dags", help="(%(default)s)")
    airflow.add_argument("--port", type=int, default=8080, help="of Airflow (%(default)s)")
    return parser


def _add_delivery(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--delivery", choices=("s3", "sftp"), default="s3", help="where to (%(default)s; sftp needs the extra sftp)"
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0 seconds (got {text})")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0 patients (got {text})")
    return count


def _serve(delivery: str, s3_port: int | None, sftp_port: int | None, **options: Any) -> int:
    from airflow_provider_healthex.sandbox.server import Sandbox

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    if delivery == "s3":
        options["s3_port"] = S3_PORT if s3_port is None else s3_port
        options["sftp_port"] = sftp_port or 0
    else:
        options["sftp_port"] = SFTP_PORT if sftp_port is None else sftp_port
        options["s3_port"] = s3_port or 0
    try:
        with Sandbox(delivery=delivery, on_event=_print_event, **options) as sandbox:  # type: ignore[arg-type]
            print(_welcome(sandbox), flush=True)
            ended.wait()
    except (OSError, ValueError) as error:
        print(f"The sandbox could not start: {error}", file=sys.stderr)
        return 1
    print("Stopped; nothing is left behind.", flush=True)
    return 0


def _welcome(sandbox: Any) -> str:
    if sandbox.delivery == "s3":
        storage = f"S3             {sandbox.s3_url}   bucket {sandbox.bucket}"
    else:
        storage = f"SFTP           {sandbox.sftp_server.address}   user {sandbox.sftp_server.username}"
    exports = "\n".join(f"export {name}='{value}'" for name, value in sandbox.airflow_environment().items())
    return (
        f"HealthEx API   {sandbox.api_url}   (control API: {sandbox.api_url}/_sandbox/state)\n"
        f"{storage}, path {sandbox.path}\n"
        f"Mailbox        {sandbox.api_url}/_sandbox/mails\n"
        f"\nAirflow's connections, to copy:\n\n{exports}\n\n{sandbox.describe_patients()}\n\nCtrl-C ends it."
    )


def _print_event(event: str, details: dict[str, Any]) -> None:
    known = {name: value for name, value in details.items() if name not in ("at", "patient_id", "project_id")}
    rest = "  ".join(f"{name}={value}" for name, value in known.items() if value is not None)
    print(f"{event:10} {details['patient_id']}  {rest}".rstrip(), flush=True)


def _patients() -> int:
    print(patients.table())
    return 0


def _demo(**options: Any) -> int:
    # Airflow is only needed here.
    code: int = importlib.import_module("airflow_provider_healthex.sandbox.demo").main(**options)
    return code


def _airflow(**options: Any) -> int:
    code: int = importlib.import_module("airflow_provider_healthex.sandbox.demo").serve_ui(**options)
    return code


if __name__ == "__main__":
    sys.exit(main())
