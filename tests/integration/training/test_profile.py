"""Profiled steps of two ranks, one of which computes longer: its name, files in run and MLflow."""

import gzip
import json
from pathlib import Path

import pytest
from cli_runner import Tahoe

from orchestrator.run.rundir import RunDir

NETWORK = """
import os, time
from torch import nn

class Slow(nn.Module):
    def forward(self, images):
        time.sleep(0.1 if os.environ.get("RANK") == "1" else 0)
        return images

def build(num_classes, in_channels):
    return nn.Sequential(Slow(), nn.Flatten(), nn.Linear(1024, num_classes))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_profile_names_what_the_ranks_wait_for(tahoe: Tahoe, digits: Path) -> None:
    (tahoe.cwd / "network.py").write_text(NETWORK)
    tahoe(
        *("train", "run_dir=run", "model=network:build", "evaluate.every_epochs=100"),
        *(f"data.url='{digits}'", "launcher.nproc_per_node=2", "recipe.steps=6"),
        *("profile.steps=[3,5]", "profile=true", "logging.plots=false"),
    )
    run = RunDir(tahoe.cwd / "run")
    report = (run.profile_dir / "attempt-0001.txt").read_text()
    assert "communication-bound" in report.splitlines()[0]
    assert any(x.startswith("rank 1 on") and "slowest" in x for x in report.splitlines())
    trace = run.profile_dir / "attempt-0001.trace.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    forwards = [e for e in events if e.get("name") == "DistributedDataParallel.forward"]
    assert len(forwards) == 3
    shipped = json.loads(run.mlflow_file.read_text())["shipped_bytes"]
    assert shipped[f"profile/{trace.name}"] == trace.stat().st_size
    assert len([*tahoe.cwd.glob("mlartifacts/*/artifacts/profile/attempt-0001.*")]) == 2
