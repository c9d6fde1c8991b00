"""A run directory as the launchers find it."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import parse
from orchestrator.launch.compose import Composed
from orchestrator.launch.create import open_run
from orchestrator.rundir import RunDir


@pytest.fixture
def run(values: dict[str, Any], shards: Path, tmp_path: Path) -> RunDir:
    """Return a run of 14 steps, 7 an epoch, that no attempt has been made of."""
    values["data"]["url"] = str(shards)
    values["recipe"]["epochs"] = 2
    run, _ = open_run(Composed(parse(values | {"run_dir": str(tmp_path / "my run")}), ()))
    return run
