"""Sweeps as arrays of a real Slurm: each point has a fate of its own."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from cli_runner import Tahoe
from cluster_runs import Jobs, everything_said
from run_results import global_batches
from sweepers import install_sweeper

from orchestrator.jobs.submit import queued_jobs
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.mlflow_store.client import open_client

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    # MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]

NUM_STEPS = 16
NETWORK = """
import os
import time
from pathlib import Path
from torch import nn

class Held(nn.Module):  # so that a run does not end before it is hurt
    num_calls = 0

    def forward(self, images):
        self.num_calls += 1
        while self.num_calls > 32 and not Path(HURT).exists():
            time.sleep(0.05)
        time.sleep(0.2)
        return images

def build(num_classes, in_channels, width):
    if width < 1 and "RANK" in os.environ:  # what is seen on a node alone
        raise ValueError(f"a layer cannot have {width} units")
    width = max(1, width)
    return nn.Sequential(
        Held(), nn.Flatten(), nn.Linear(in_channels * 32 * 32, width), nn.Dropout(0.5),
        nn.Linear(width, num_classes))
"""
# Tries two widths, then two more, and says what it has been told.
SWEEP = """
    def sweep(self, arguments):
        worth = {}
        for widths in ([4, 64], [32, -1]):
            batch = [[*arguments, f"+model.kwargs.width={width}"] for width in widths]
            for width, done in zip(widths, self.launcher.launch(batch, len(worth))):
                failed = done.status.name == "FAILED"
                worth[width] = None if failed else done.return_value
        print("worth:", json.dumps(worth))
"""


@pytest.fixture
def hurt(tmp_path: Path) -> Path:
    """Return the file without which no run here gets much further than its 8th step."""
    return tmp_path / "hurt"


@pytest.fixture
def tahoe(tmp_path: Path, hurt: Path) -> Tahoe:
    (tmp_path / "network.py").write_text(f"HURT = {str(hurt)!r}\n{NETWORK}")
    return Tahoe(tmp_path)


def options(jobs: Jobs) -> list[str]:
    return [
        *("-m", "slurm=default", f"data.url='{jobs.digits}'", "model=network:build"),
        *(f"recipe.steps={NUM_STEPS}", "recipe.global_batch_size=64", "logging.every_steps=1"),
        "recipe.num_micro_batches=4",  # four calls of the network a step
        *("checkpoint.every_steps=4", "data.num_workers=0", "runtime.threads_per_rank=1"),
    ]


def test_of_six_points_one_is_requeued_and_one_is_bad(jobs: Jobs, tahoe: Tahoe, hurt: Path) -> None:
    points = "+model.kwargs.width=16,17,18,19,20,-1"
    names = "run_dir='runs/${hydra:job.num}'"
    overrides = [*options(jobs), "logging.log_sample_ids=true", "slurm.array_parallelism=4"]
    printed = tahoe("submit", *overrides, names, points).stdout
    (sweep,) = (tahoe.cwd / "runs" / "sweeps").iterdir()
    runs = [RunDir(tahoe.cwd / "runs" / str(i)) for i in range(6)]
    array = printed.split()[2]  # submitted array N of 6 runs

    jobs.wait_for_step(runs[1], 5)
    states = [job.state for job in queued_jobs(runs).values()]
    assert states.count("RUNNING") <= 4
    subprocess.run(["scontrol", "requeue", f"{array}_1"], check=True)
    hurt.touch()
    for run in runs:
        jobs.wait_for_end(run)

    found = json.loads(tahoe("status", "--json", str(sweep)).stdout)
    states = [one["state"] for one in found]
    assert states == ["finished"] * 5 + ["failed_permanently"], everything_said(runs[1])
    assert [one["num_attempts"] for one in found] == [1, 2, 1, 1, 1, 1]
    assert "a layer cannot have -1 units" in found[5]["why"]
    assert found[5]["why"] in tahoe("status", str(sweep)).stdout
    assert global_batches(runs[1]) == global_batches(runs[0])  # none lost, none doubled
    assert f"slurm/{array}_5.out" in [
        str(f.relative_to(runs[5].path)) for f in slurm_files(runs[5])
    ]

    tahoe("sync", str(sweep))
    with open_client(f"sqlite:///{tahoe.cwd}/mlflow.db") as client:
        in_mlflow = client.search_runs([client.get_experiment_by_name("tahoe").experiment_id])
    (parent,) = [run for run in in_mlflow if run.info.run_name == sweep.name]
    children = [run for run in in_mlflow if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.info.status for run in children) == ["FAILED"] + ["FINISHED"] * 5
    assert parent.info.status == "FAILED"


@pytest.mark.slow
def test_a_search_is_told_what_its_points_were_worth(jobs: Jobs, tahoe: Tahoe, hurt: Path) -> None:
    hurt.touch()
    sweeper = install_sweeper(tahoe.cwd, "Climber", SWEEP)
    short = [option for option in options(jobs) if not option.startswith("recipe.steps")]
    more = ["tracking=none", "hydra.launcher.wait=true", "recipe.epochs=1"]
    printed = tahoe("submit", *short, *more, sweeper).stdout
    assert "0 of 2 runs ended" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("worth: ")]
    worth = json.loads(line.removeprefix("worth: "))
    (sweep,) = (tahoe.cwd / "runs" / "sweeps").iterdir()
    found = json.loads(tahoe("status", "--json", str(sweep)).stdout)
    assert [one["state"] for one in found] == ["finished"] * 3 + ["failed_permanently"]
    measured = [one["metrics"].get("val/top1") for one in found]
    assert worth == dict(zip(("4", "64", "32", "-1"), measured, strict=True))
    assert measured[1] is not None
    assert measured[3] is None


@pytest.mark.slow
def test_two_hundred_runs_are_submitted_in_time(jobs: Jobs, tmp_path: Path) -> None:
    tahoe = Tahoe(tmp_path)
    size = ["recipe.steps=1", "recipe.global_batch_size=64", "slurm=default"]
    hold = "+slurm.additional_parameters.hold=true"
    seeds = ",".join(map(str, range(200)))
    place = f"data.url='{jobs.digits}'"
    start_s = time.monotonic()
    tahoe("submit", "-m", *size, "tracking=none", hold, place, f"seed={seeds}")
    seconds = time.monotonic() - start_s
    listed = subprocess.run(
        ["squeue", "-h", "--array", "-o", "%F"], capture_output=True, text=True, check=True
    )
    (array,) = set(listed.stdout.split())
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    cancelled = tahoe("cancel", str(sweep)).stdout
    assert cancelled.count(f"cancelled job {array}_") == len(listed.stdout.split()) == 200
    assert seconds < 200 * 0.4


def slurm_files(run: RunDir) -> list[Path]:
    return list((run.path / "slurm").iterdir())
