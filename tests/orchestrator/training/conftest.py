"""A config as Hydra composes it, for tests that need no run."""

import pytest

from orchestrator.launch.compose import compose
from orchestrator.schema import Config, Recipe


@pytest.fixture(scope="session")
def config() -> Config:
    (composed,) = compose(["data=digits", "tracking=none"])
    return composed.config


@pytest.fixture(scope="session")
def recipe(config: Config) -> Recipe:
    return config.recipe
