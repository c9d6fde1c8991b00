"""Fixtures of these tests; tests/support has them."""

from config_fixtures import _default, shards, values

__all__ = [
    "_default",
    "values",
    "shards",
]
