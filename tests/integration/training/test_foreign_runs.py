"""Runs on shards of others obey the laws: on any ranks and workers, killed and resumed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import Tahoe
from foreign_layouts import LAYOUTS, Layout, pack_as_tahoe, stored, write_layout
from run_results import figures, global_batches, weights
from s3_server import S3

from orchestrator.run.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

NUM_STEPS = 12  # of 3 an epoch
NETWORK = """
import time
from torch import nn

def build(num_classes, in_channels):
    class Slow(nn.Module):
        def forward(self, images):
            time.sleep(0.05)
            return images
    return nn.Sequential(
        Slow(), nn.Flatten(), nn.Linear(in_channels * 32 * 32, 16), nn.BatchNorm1d(16),
        nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, num_classes))
"""
RUN = (
    *("data=shards", "data.image_size=32", "data.eval_protocol=center-32-of-32"),
    *("model=network:build", "tracking=none", f"recipe.steps={NUM_STEPS}"),
    *("recipe.global_batch_size=24", "recipe.num_micro_batches=4", "data.num_lanes=8"),
    *("checkpoint.every_steps=3", "logging.every_steps=1", "logging.log_sample_ids=true"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    (path / "network.py").write_text(NETWORK)
    return path


@pytest.fixture(scope="module")
def expected(home: Path) -> RunDir:
    """Return a run on the same samples in the same shards, written by Tahoe."""
    write_layout(home / "ours", layout := Layout(pack_as_tahoe))
    place = overrides(str(home / "ours"), layout)
    Tahoe(home)("shard", "index", *place)
    Tahoe(home)("train", *RUN, *place, "run_dir=ours", "launcher.nproc_per_node=2")
    run = RunDir(home / "ours")
    steps = global_batches(run)
    assert sorted(s for step in range(3) for s in steps[step]) == [*range(72)]  # each once
    return run


@pytest.fixture(params=[("timm", "http"), ("img2dataset", "s3"), ("gnu", "disk")])
def place(
    request: pytest.FixtureRequest, s3_server: S3, tmp_path: Path, home: Path
) -> Iterator[list[str]]:
    """Yield the overrides of an indexed layout in a store."""
    name, store = request.param
    s3_server.fail()
    write_layout(tmp_path / "in", LAYOUTS[name])
    with stored(store, tmp_path / "in", s3_server) as url:
        found = [*overrides(url, LAYOUTS[name]), f"data.manifest={tmp_path}/manifests"]
        Tahoe(home)("shard", "index", *found)
        yield [*found, f"data.cache.dir={tmp_path}/cache"]


def overrides(url: str, layout: Layout) -> list[str]:
    patterns = [f"data.train={url}/{layout.train}", f"data.val={url}/{layout.val}"]
    return [*patterns, f"data.label={layout.label}"]


def test_runs_on_layouts_of_others_see_the_same_batches(
    expected: RunDir, place: list[str], home: Path, tmp_path: Path
) -> None:
    for ranks, workers in ((1, 4), (4, 1)):
        size = [f"launcher.nproc_per_node={ranks}", f"data.num_workers={workers}"]
        run = RunDir(tmp_path / f"ranks-{ranks}")
        Tahoe(home)("train", *RUN, *place, *size, f"run_dir={run.path}")
        assert global_batches(run) == global_batches(expected)

    killed = Tahoe(home).start(
        *("train", *RUN, *place, "data.num_workers=0"),
        *("launcher.nproc_per_node=2", f"run_dir={tmp_path}/killed"),
    )
    killed.wait_for("step 5/")
    killed.kill_ranks()
    assert killed.finish() == 1
    Tahoe(home)("resume", str(tmp_path / "killed"), "data.num_workers=1")
    run = RunDir(tmp_path / "killed")
    assert run.num_attempts == 2
    assert global_batches(run) == global_batches(expected)
    assert weights(run, NUM_STEPS) == weights(expected, NUM_STEPS)
    names = ("train/loss", "val/top1", "val/loss")
    assert figures(run, *names) == figures(expected, *names)
