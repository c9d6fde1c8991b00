"""Fixtures of these tests; tests/support has them."""

from config_fixtures import _default, shards, values
from tracking_fixtures import (
    create_tracked_run,
    eventually,
    free_port,
    migrated,
    ship,
    start,
    store,
    tracked,
)

__all__ = [
    "_default",
    "values",
    "shards",
    "migrated",
    "create_tracked_run",
    "store",
    "tracked",
    "start",
    "ship",
    "eventually",
    "free_port",
]
