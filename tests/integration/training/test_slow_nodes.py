"""Two ranks on two nodes, one of which computes longer from some step on: then it is named."""

import json
from pathlib import Path

import pytest
from cli_runner import Tahoe

from orchestrator.run.node_times import slow_nodes
from orchestrator.run.rundir import RunDir, append_json_line, read_json_lines

# The name of a node is what Slurm would set: the ranks of this machine pretend to be on two.
NETWORK = """
import os, time
from torch import nn

os.environ["SLURMD_NODENAME"] = f"node{os.environ.get('RANK', '0')}"

class Slow(nn.Module):
    num_calls = 0

    def forward(self, images):
        self.num_calls += self.training
        is_throttled = self.num_calls > 120 and os.environ["RANK"] == "1"
        time.sleep(0.08 if is_throttled else 0.04)
        return images

def build(num_classes, in_channels):
    return nn.Sequential(Slow(), nn.Flatten(), nn.Linear(1024, num_classes))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_computes_longer_is_named(tahoe: Tahoe, digits: Path, tmp_path: Path) -> None:
    """Its micro-batch takes 80 ms instead of 40, from step 121 on."""
    (tahoe.cwd / "network.py").write_text(NETWORK)
    tahoe(
        *("train", "run_dir=run", "model=network:build", "strategy=ddp_zero1", "tracking=none"),
        *(f"data.url='{digits}'", "launcher.nproc_per_node=2", "recipe.num_micro_batches=2"),
        *("recipe.steps=222", "recipe.global_batch_size=64", "evaluate.every_epochs=100"),
        *("logging.every_steps=40", "data.num_lanes=2"),
    )
    run = RunDir(tahoe.cwd / "run")
    lines = [*read_json_lines(run.node_times_file)]
    assert [line["step"] for line in lines] == [40, 80, 120, 160, 200, 222]
    assert sum(line["num_steps"] for line in lines) == 221  # the first is left out

    before = RunDir(tmp_path)
    for line in lines[:3]:
        append_json_line(before.node_times_file, line)
    assert slow_nodes(before) == []

    (slow,) = json.loads(tahoe("status", "--json", "run").stdout)[0]["slow_nodes"]
    assert (slow["node"], slow["num_nodes"], slow["num_steps"]) == ("node1", 2, 102)
    assert 0.4 < slow["excess"] <= 1.0  # of equal steps that a busy machine may prolong
    assert abs(slow["data_excess"]) < 0.3
    assert "node1 computes" in tahoe("status", "run").stdout
    for line in lines[3:5]:
        fast, throttled = line["nodes"]["node0"], line["nodes"]["node1"]
        assert throttled["busy_s"] - fast["busy_s"] > 0.02
        assert throttled["wait_fraction"] == 0 < 0.1 < fast["wait_fraction"] < 0.5
    metrics = next(x["metrics"] for x in read_json_lines(run.metrics_file) if x["step"] == 200)
    assert metrics["perf/wait_fraction"] == pytest.approx(fast["wait_fraction"] / 2)
    assert metrics["perf/node_time_max_s"] == throttled["busy_s"]
    assert metrics["perf/node_time_p50_s"] == fast["busy_s"]
