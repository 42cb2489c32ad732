"""Servers, stores and runs that several tests share. Fixtures are in the folders' ``conftest.py``."""
