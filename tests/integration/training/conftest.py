"""Fixtures of these tests; tests/support has them."""

from config_fixtures import _default, shards, values
from launch_fixtures import run
from training_fixtures import config, recipe, world

__all__ = [
    "_default",
    "values",
    "shards",
    "config",
    "recipe",
    "run",
    "world",
]
