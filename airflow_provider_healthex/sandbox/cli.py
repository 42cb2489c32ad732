"""The command ``healthex-sandbox``: ``serve``, ``patients``, ``demo`` and ``airflow``."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from typing import Any

from airflow_provider_healthex.sandbox import patients

#: Modules that the extra ``sandbox`` installs, and what delivery by SFTP needs besides.
EXTRA = ("aiosmtpd", "cryptography", "flask", "flask_cors", "moto", "public", "py_partiql_parser", "werkzeug", "yaml")
SFTP_EXTRA = ("asyncssh",)

DEFAULT_PATH = "d/{projectId}/{healthexPatientId}/"

S3_PORT = 9898
SFTP_PORT = 9822


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
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
    serve.add_argument("--port", type=int, default=8989, help="of the API (%(default)s; 0: a free one)")
    _add_delivery(serve)
    serve.add_argument("--s3-port", type=int, help=f"of S3 ({S3_PORT}; 0: a free one)")
    serve.add_argument("--sftp-port", type=int, help=f"of SFTP ({SFTP_PORT}; 0: a free one)")
    serve.add_argument("--smtp-port", type=int, default=2525, help="of the mailbox (%(default)s; 0: a free one)")
    serve.add_argument(
        "--delay", type=_seconds, default=3.0, metavar="S",
        help="seconds from a request to its delivery (%(default)g)",
    )  # fmt: skip
    serve.add_argument(
        "--path", default=DEFAULT_PATH,
        help="where deliveries go (%(default)s); also {orgId} and {externalId}",
    )  # fmt: skip
    serve.add_argument(
        "--patients", type=_count, default=0, metavar="N",
        help="so many more patients, patient-00001 and on, with outcomes drawn from the seed",
    )  # fmt: skip
    serve.add_argument("--seed", type=int, default=0, help="of the outcomes and the spread (%(default)s)")
    serve.add_argument(
        "--spread", type=_seconds, default=0.0, metavar="S",
        help="deliveries come within so many seconds after the delay (%(default)g)",
    )  # fmt: skip
    serve.add_argument(
        "--latency", type=_seconds, default=0.0, metavar="S", help="seconds every call takes (%(default)g)"
    )
    serve.add_argument(
        "--rate-limit", type=float, metavar="N", help="calls a second; above it 429 with Retry-After (no limit)"
    )
    serve.add_argument(
        "--no-earlier-deliveries", dest="earlier_deliveries", action="store_false", help="begin with nothing delivered"
    )
    serve.add_argument("--bucket", help="of S3, where deliveries go (healthex-deliveries)")
    serve.add_argument(
        "--bind", default="127.0.0.1", metavar="ADDRESS",
        help="listen on another address (don't: it is open to whoever reaches it)",
    )  # fmt: skip
    serve.add_argument(
        "--s3-endpoint", metavar="URL",
        help="deliver to this S3 server, with the credentials that boto3 finds, and start none",
    )  # fmt: skip

    listing = commands.add_parser("patients", help="list the patients and what each makes happen")
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
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of patients")
    return count


def _serve(options: argparse.Namespace) -> int:
    from airflow_provider_healthex.sandbox.server import Sandbox

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        sandbox = Sandbox(
            port=options.port,
            delivery=options.delivery,
            s3_port=_port(options.s3_port, S3_PORT if options.delivery == "s3" else 0),
            sftp_port=_port(options.sftp_port, SFTP_PORT if options.delivery == "sftp" else 0),
            smtp_port=options.smtp_port,
            delay=options.delay,
            cohort=options.patients,
            seed=options.seed,
            spread=options.spread,
            latency=options.latency,
            rate_limit=options.rate_limit,
            earlier_deliveries=options.earlier_deliveries,
            path=options.path,
            bucket=options.bucket,
            bind=options.bind,
            s3_endpoint=options.s3_endpoint,
            on_event=_print_event,
        )
        with sandbox:
            print(_welcome(sandbox), flush=True)
            ended.wait()
    except (OSError, ValueError) as error:
        print(f"The sandbox could not start: {error}", file=sys.stderr)
        return 1
    print("Stopped; nothing is left behind.", flush=True)
    return 0


def _port(chosen: int | None, default: int) -> int:
    return default if chosen is None else chosen


def _welcome(sandbox: Any) -> str:
    exports = "\n".join(f"export {name}='{value}'" for name, value in sandbox.airflow_environment().items())
    return (
        f"HealthEx API   {sandbox.api_url}   (control API: {sandbox.api_url}/_sandbox/state)\n"
        f"{_where(sandbox)}, path {sandbox.path}\n"
        f"Mailbox        {sandbox.api_url}/_sandbox/mails\n"
        f"\nAirflow's connections, to copy:\n\n{exports}\n\n{sandbox.describe_patients()}\n\nCtrl-C ends it."
    )


def _where(sandbox: Any) -> str:
    if sandbox.delivery == "s3":
        return f"S3             {sandbox.s3_url}   bucket {sandbox.bucket}"
    server = sandbox.sftp_server
    return f"SFTP           {server.host}:{server.port}   user {server.username}"


def _print_event(event: str, details: dict[str, Any]) -> None:
    known = {name: value for name, value in details.items() if name not in ("at", "patient_id", "project_id")}
    rest = "  ".join(f"{name}={value}" for name, value in known.items() if value is not None)
    print(f"{event:10} {details['patient_id']}  {rest}".rstrip(), flush=True)


def _patients(options: argparse.Namespace) -> int:
    print(patients.table())
    return 0


def _demo(options: argparse.Namespace) -> int:
    # Airflow is only needed here.
    demo = importlib.import_module("airflow_provider_healthex.sandbox.demo")
    code: int = demo.main(options)
    return code


def _airflow(options: argparse.Namespace) -> int:
    demo = importlib.import_module("airflow_provider_healthex.sandbox.demo")
    code: int = demo.serve_ui(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
