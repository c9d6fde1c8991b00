"""A run directory as the launchers find it."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.parse import parse
from orchestrator.launch.compose import ComposedConfig
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.run.rundir import RunDir


@pytest.fixture
def run(values: dict[str, Any], shards: Path, tmp_path: Path) -> RunDir:
    """Return a run of 14 steps, 7 an epoch, that no attempt has been made of."""
    values["data"]["url"] = str(shards)
    values["recipe"]["epochs"] = 2
    run, _ = create_or_open_run(
        ComposedConfig(parse(values | {"run_dir": str(tmp_path / "my run")}), ())
    )
    return run
