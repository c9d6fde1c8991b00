"""Fixtures of these tests; tests/support has them."""

from config_fixtures import _default, shards, values
from launch_fixtures import run

__all__ = [
    "_default",
    "values",
    "shards",
    "run",
]
