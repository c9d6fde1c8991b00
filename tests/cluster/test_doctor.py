"""`tahoe doctor` on a real Slurm: what it accepts, and what its nodes are like."""

import json
from pathlib import Path

import pytest
from cluster_runs import Jobs
from running import Tahoe

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
SIZE = ("cluster=slurm", "cluster.nodes=2", "cluster.tasks_per_node=2", "tracking=none")


def doctor(tahoe: Tahoe, jobs: Jobs, *more: str) -> tuple[int, list[dict[str, str]]]:
    done = tahoe("doctor", "--json", f"data.url='{jobs.digits}'", *SIZE, *more, check=False)
    return done.returncode, json.loads(done.stdout)


def test_nodes_are_looked_at(jobs: Jobs, tmp_path: Path) -> None:
    code, found = doctor(Tahoe(tmp_path), jobs, "--on-nodes")
    assert {one["level"] for one in found} == {"ok"}, found
    assert code == 0
    said = {one["what"]: one["said"] for one in found}
    assert "node1: 0, node2: 0" in said["GPUs"]
    assert "on 2 nodes" in said["software"]
    assert "GB/s between 4 ranks" in said["all-reduce"]
    assert "MB/s a node" in said["shards"]
    assert "clocks differ by" in said["clocks"]
    assert list((tmp_path / "runs" / "doctor").iterdir()) == []  # all was well


def test_what_slurm_does_not_take_is_told(jobs: Jobs, tmp_path: Path) -> None:
    code, found = doctor(Tahoe(tmp_path), jobs, "cluster.partition=gpuu", "--on-nodes")
    assert (code, found[-1]["what"], found[-1]["level"]) == (1, "Slurm", "fail")
    assert "Invalid partition" in found[-1]["said"]


def test_ranks_that_cannot_meet_are_told(jobs: Jobs, tmp_path: Path) -> None:
    missing = "cluster.network_interface=ib0"
    code, found = doctor(Tahoe(tmp_path), jobs, "--on-nodes", missing)
    assert (code, found[-1]["level"]) == (1, "fail")
    assert "Unable to find address for: ib0" in found[-1]["said"]
    assert len(list((tmp_path / "runs" / "doctor").iterdir())) == 1  # to be read
