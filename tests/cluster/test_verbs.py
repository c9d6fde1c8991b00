"""What a user asks of jobs: submit, look, follow, and nothing that is edited later."""

import json
import subprocess
from pathlib import Path

import pytest
from cli_runner import Tahoe
from cluster_runs import Jobs, everything_said

from orchestrator.run.rundir import RunDir, read_json_lines
from orchestrator.tracking.mlflow_store.client import open_client

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    # MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]

NETWORK = """
from torch import nn

def build(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 32 * 32, num_classes))
"""
RECIPE = "# @package _global_\nrecipe: {steps: 6, global_batch_size: 64, epochs: null}\n"


def test_a_job_is_followed_and_not_reached_by_later_edits(jobs: Jobs, tmp_path: Path) -> None:
    """Held in the queue, while the config and the code that it was submitted with are spoilt."""
    home = tmp_path / "my project"
    (home / "conf" / "experiment").mkdir(parents=True)
    recipe, network = home / "conf" / "experiment" / "mine.yaml", home / "network.py"
    recipe.write_text(RECIPE)
    network.write_text(NETWORK)
    subprocess.run(["git", "init", "--quiet", home], check=True)
    tahoe = Tahoe(home)
    place = [f"data.url='{jobs.digits}'", "run_dir=held", f"--config-dir={home / 'conf'}"]
    options = ["experiment=mine", "model=network:build", "slurm=default", "logging.every_steps=1"]
    hold = "+slurm.additional_parameters.hold=true"
    shown = tahoe("submit", *place, *options, "--dry-run").stdout
    assert shown.startswith("# 6 steps of ")
    assert "\n#!/bin/bash\n" in shown
    assert not (home / "held").exists()
    printed = tahoe("submit", *place, *options, hold).stdout
    assert "submitted job" in printed
    run = RunDir(home / "held")
    (line,) = read_json_lines(run.jobs_file)

    recipe.write_text(RECIPE.replace("6", "7"))
    network.write_text("raise RuntimeError('edited while the job waited')")
    (one,) = json.loads(tahoe("status", "--json", "held").stdout)
    assert (one["state"], one["job_id"]) == ("pending", line["slurm_job_id"])
    assert one["num_steps"] == 6
    refused = tahoe("submit", *place, *options, check=False)
    assert "pending already" in refused.stderr

    following = tahoe.start("logs", "-f", "held")
    subprocess.run(["scontrol", "release", line["slurm_job_id"]], check=True)
    following.wait_for("step 6/6")
    assert following.finish() == 0
    jobs.wait_for_end(run)
    assert run.is_finished, everything_said(run)
    (one,) = json.loads(tahoe("status", "--json", "held").stdout)
    assert (one["state"], one["step"], one["num_attempts"]) == ("finished", 6, 1)
    assert "finished" in tahoe("list", "--runs-dir", str(home)).stdout

    tahoe("sync", "held")
    with open_client(f"sqlite:///{home}/mlflow.db") as client:
        found = client.search_runs([client.get_experiment_by_name("tahoe").experiment_id])
    assert len(found) == 1
    assert found[0].info.status == "FINISHED"
    assert found[0].data.tags["slurm_job_id"] == line["slurm_job_id"]
    assert found[0].data.tags["nodes"].startswith("node")


@pytest.mark.slow
def test_a_run_waits_for_another(jobs: Jobs, tmp_path: Path) -> None:
    tahoe = Tahoe(tmp_path)
    size = ["recipe.steps=3", "recipe.global_batch_size=64", "slurm=default", "tracking=none"]
    place = [f"data.url='{jobs.digits}'"]
    lonely = tahoe(
        "submit", *size, *place, "run_dir=b", "--after", str(tmp_path / "a"), check=False
    )
    assert "no run at" in lonely.stderr
    tahoe("submit", *size, *place, "run_dir=a")
    tahoe("submit", *size, *place, "run_dir=b", "--after", str(tmp_path / "a"))
    first, second = RunDir(tmp_path / "a"), RunDir(tmp_path / "b")
    jobs.wait_for_end(first)
    jobs.wait_for_end(second)
    (begun, *_), (_, ended) = (list(read_json_lines(r.attempts_file)) for r in (second, first))
    assert begun["started_s"] >= ended["ended_s"]


@pytest.mark.slow
def test_a_drill_loses_nodes(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli_runner.DEADLINE_S", 280)
    size = ("slurm.nodes=2", "slurm.tasks_per_node=1")
    asked = ("drill", f"data.url='{jobs.digits}'", *size, "--on-nodes", "--directory", "drill")
    tahoe = Tahoe(tmp_path)
    refused = tahoe(*asked, "--faults", "5", check=False)
    assert refused.returncode == 93
    assert "--faults 4" in refused.stderr
    report = json.loads(tahoe(*asked, "--faults", "1", "--json").stdout)
    assert report["passed"]
    assert report["faults"] == {"lose a node": 1}
    assert report["num_attempts"] == 2
