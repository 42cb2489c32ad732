"""Whole Airflows of their own, for the benchmarks and ``make crash``."""


class Unavailable(Exception):
    """A needed program or package isn't installed."""
