"""Fixtures of these tests; tests/support has them."""

from data_fixtures import _workers_start_at_once, s3, source

__all__ = [
    "_workers_start_at_once",
    "source",
    "s3",
]
