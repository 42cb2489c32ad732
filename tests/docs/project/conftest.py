import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Airflow reads these when it is first imported.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp()
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(Path(__file__).parent / "dags")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "false"
os.environ["HEALTHEX_EXAMPLE_POKE_INTERVAL"] = "1"  # of refresh_patient.py, like the next
os.environ["HEALTHEX_EXAMPLE_QUIET_PERIOD"] = "2"
subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True)
