"""The Apache Airflow provider for HealthEx: request a refresh, wait until the refreshed data has landed."""

__version__ = "0.1.0"
