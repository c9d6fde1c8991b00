"""Laws 1 and 2: a killed run ends with the bits of an undisturbed one.

Real runs, started by the command line and killed by signals at a step. The network has dropout and
batch norm, the images are augmented, and an epoch ends between the last checkpoint and the kill. On
the same number of ranks the weights end equal bit for bit; on another number every global batch is
made of the same samples.
"""

import os
import signal
from pathlib import Path

import pytest
from cli_runner import Tahoe
from run_results import figures, global_batches, weights
from s3_server import serve

from orchestrator.run.rundir import RunDir

NETWORK = """
import time
from torch import nn

class Slow(nn.Module):  # so that a run does not end before it is killed
    def forward(self, images):
        time.sleep(0.03)
        return images

def build(num_classes, in_channels, width):
    return nn.Sequential(
        Slow(), nn.Flatten(),
        nn.Linear(in_channels * 32 * 32, width), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(width, width // 2), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(width // 2, num_classes))
"""
NUM_STEPS = 30
# 1,438 images in batches of 64: an epoch ends at step 22, after the checkpoint of step 20.
RUN = (
    "model=network:build",
    "tracking=none",
    f"recipe.steps={NUM_STEPS}",
    "recipe.global_batch_size=64",
    "recipe.num_micro_batches=4",
    "recipe.ema_decay=0.9",
    "checkpoint.every_steps=10",
    "evaluate.every_epochs=0.5",
    "logging.every_steps=1",
    "logging.log_sample_ids=true",
)
KILLED_AT = "step 24/"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    (path / "network.py").write_text(NETWORK)
    return path


def command(digits: Path | str, name: str, *, ranks: int, width: int = 64) -> list[str]:
    where = (f"run_dir={name}", f"data.url='{digits}'", f"launcher.nproc_per_node={ranks}")
    return ["train", *RUN, *where, f"+model.kwargs.width={width}"]


@pytest.fixture(scope="module")
def undisturbed(home: Path, digits: Path) -> RunDir:
    Tahoe(home)(*command(digits, "undisturbed", ranks=2))
    return RunDir(home / "undisturbed")


def test_undisturbed_epoch_has_every_sample_at_most_once(undisturbed: RunDir) -> None:
    batches = global_batches(undisturbed)
    epoch = [sample for step in range(22) for sample in batches[step]]
    assert len(epoch) == len(set(epoch)) == 22 * 64
    assert max(epoch) < 1438


def test_killed_run_ends_with_the_same_bits(undisturbed: RunDir, home: Path, digits: Path) -> None:
    killed = Tahoe(home).start(*command(digits, "killed", ranks=2))
    killed.wait_for(KILLED_AT)
    killed.kill_ranks()
    assert killed.finish() == 1
    assert "ended with signal SIGKILL" in killed.output
    assert "tahoe resume" in killed.output
    Tahoe(home)("resume", "killed")

    run = RunDir(home / "killed")
    assert weights(run, NUM_STEPS) == weights(undisturbed, NUM_STEPS)
    assert global_batches(run) == global_batches(undisturbed)
    names = ("train/loss", "train/grad_norm", "train/lr", "val/top1", "val/loss")
    again = figures(run, *names)
    assert again == figures(undisturbed, *names)
    assert run.num_attempts == 2


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [pytest.param(2, 1, marks=pytest.mark.long), (1, 2)])
def test_resume_on_another_number_of_ranks_sees_the_same_batches(
    undisturbed: RunDir,
    home: Path,
    digits: Path,
    before: int,
    after: int,
) -> None:
    name = f"from-{before}-to-{after}"
    killed = Tahoe(home).start(*command(digits, name, ranks=before))
    killed.wait_for(KILLED_AT)
    os.kill(killed.rank_pids()[-1], signal.SIGKILL)  # one rank is enough to end an attempt
    assert killed.finish() == 1
    Tahoe(home)("resume", name, f"launcher.nproc_per_node={after}")

    run = RunDir(home / name)
    assert global_batches(run) == global_batches(undisturbed)
    ours, theirs = figures(run, "train/loss"), figures(undisturbed, "train/loss")
    assert ours.keys() == theirs.keys()
    for step in range(1, 11):  # the same sums in another order: equal to rounding
        (expected,) = theirs[step, "train/loss"]
        assert ours[step, "train/loss"].pop() == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_signal_on_one_rank_stops_all_ranks_at_the_same_step(
    undisturbed: RunDir, home: Path, digits: Path
) -> None:
    stopped = Tahoe(home).start(*command(digits, "stopped", ranks=2))
    stopped.wait_for("step 12/")
    os.kill(stopped.rank_pids()[1], signal.SIGUSR1)
    assert stopped.finish() == 75
    run = RunDir(home / "stopped")
    outcome = run.read_json(run.outcome_file)
    assert outcome is not None
    assert outcome["outcome"] == "stopped"
    assert 12 < outcome["step"] < 22
    assert (run.checkpoints_dir / f"step-{outcome['step']:09d}" / "manifest.json").exists()
    Tahoe(home)("resume", "stopped")
    assert weights(run, NUM_STEPS) == weights(undisturbed, NUM_STEPS)
    assert figures(run, "train/loss", "val/top1") == figures(undisturbed, "train/loss", "val/top1")


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_four_ranks_with_several_buckets_end_with_the_same_bits(home: Path, digits: Path) -> None:
    """27 MB of gradients are more than DDP's first bucket; from 3 ranks the grouping matters."""
    wide = {"ranks": 4, "width": 3000}
    Tahoe(home)(*command(digits, "wide", **wide))
    killed = Tahoe(home).start(*command(digits, "wide-killed", **wide))
    killed.wait_for(KILLED_AT)
    killed.kill_ranks()
    killed.finish()
    Tahoe(home)("resume", "wide-killed")
    assert weights(RunDir(home / "wide-killed"), NUM_STEPS) == weights(
        RunDir(home / "wide"), NUM_STEPS
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("cached", [True, pytest.param(False, marks=pytest.mark.long)])
def test_killed_run_over_a_faulty_s3_ends_with_the_same_bits(
    undisturbed: RunDir, home: Path, digits: Path, cached: bool
) -> None:
    """With a cache that holds one of the three shards, and with none."""
    name = "cached" if cached else "streamed"
    settings = [f"data.cache.dir='{home / 'cache'}'", "data.cache.max_gb=0.0011"]
    with serve() as s3:
        s3.put(s3.url("digits"), digits)
        s3.fail(errors=0.03, cuts=0.03, latency_s=0.002)
        killed = Tahoe(home).start(
            *command(s3.url("digits"), name, ranks=2),
            *(settings if cached else ["data.cache=none"]),
            "data.num_workers=1",
        )
        killed.wait_for(KILLED_AT)
        killed.kill_ranks()
        assert killed.finish() == 1
        Tahoe(home)("resume", name)
    run = RunDir(home / name)
    assert weights(run, NUM_STEPS) == weights(undisturbed, NUM_STEPS)
    assert global_batches(run) == global_batches(undisturbed)
