"""A sweep over the folds of a data set, compared as one row."""

from pathlib import Path

import pytest
from cli_runner import Tahoe

from orchestrator.run.rundir import RunDir
from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.reports.compare import compare


@pytest.mark.slow
def test_a_sweep_over_folds_is_one_row(tahoe: Tahoe, digits: Path) -> None:
    tahoe("shard", "split", str(digits), "folds", "--folds", "2", "--samples-per-shard", "300")
    tahoe("train", "-m", "data.url=folds", "data.fold=0,1", "recipe.steps=2", "tracking=none")
    runs = [RunDir(path.parent) for path in sorted(tahoe.cwd.glob("runs/*/config.yaml"))]
    (section,) = compare([read_record(run) for run in runs])
    (row,) = section.rows
    assert (section.folds, row.metrics["val/top1"].num) == ((0, 1), 2)
    assert {record.config["data.fold"] for record in row.records} == {0, 1}
