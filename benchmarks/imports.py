"""How long a DAG file waits for the import of our operators and sensors, against S3KeySensor's alone."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.report import Report

BASELINE = ("airflow.providers.amazon.aws.sensors.s3",)
OURS = ("airflow_provider_healthex.operators.healthex", "airflow_provider_healthex.sensors.healthex")

TARGET = 1.1

_TIMED = "import time\nbegan = time.perf_counter()\nimport {}\nprint(time.perf_counter() - began)"


def run(rounds: int = 11) -> Report:
    """Import each in fresh interpreters, by turns."""
    with tempfile.TemporaryDirectory() as home:
        _import(BASELINE, home)  # the first writes Airflow's configuration, and byte code
        _import(OURS, home)
        pairs = [(_import(BASELINE, home), _import(OURS, home)) for _ in range(rounds)]
    baseline, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = ours / baseline
    return Report(
        name="imports",
        question="Importing our operator and sensor modules, as a DAG file does: fresh interpreters, by turns.",
        ratio=f"{ratio:.2f} x the import of S3KeySensor's module",
        target=f"at most {TARGET:g} x",
        met=ratio <= TARGET,
        columns=("modules", "median s", "fastest s"),
        rows=[
            (", ".join(BASELINE), f"{baseline:.3f}", f"{min(pair[0] for pair in pairs):.3f}"),
            (", ".join(OURS), f"{ours:.3f}", f"{min(pair[1] for pair in pairs):.3f}"),
        ],
        notes=(f"{rounds} rounds. Ours import S3KeySensor's module: it is a base of our sensor.",),
    )


def _import(modules: tuple[str, ...], home: str) -> float:
    """Return the seconds an import takes in a new interpreter, without the interpreter's own start."""
    left_out = ("AIRFLOW", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TIMED.format(", ".join(modules))],
        # Byte code for both alike, whatever the environment has, and none of it in the checkout.
        env={**environment, "AIRFLOW_HOME": home, "PYTHONPYCACHEPREFIX": f"{home}/pycache"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return float(done.stdout.splitlines()[-1])
