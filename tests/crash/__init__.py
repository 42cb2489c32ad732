"""``make crash``: what becomes of a refresh on a real Airflow whose parts are killed, and whose services fail."""
