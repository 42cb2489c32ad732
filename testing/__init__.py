"""Whole Airflows of their own, for what must run on one: the benchmarks and ``make crash``."""


class Unavailable(Exception):
    """A program or package that is needed isn't installed."""
