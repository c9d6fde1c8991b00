"""`tahoe doctor` on a real Slurm: what it accepts, and what its nodes are like."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_runner import Tahoe
from cluster_runs import Jobs

from slurm import client

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
SIZE = ("slurm=default", "slurm.nodes=2", "slurm.tasks_per_node=2", "tracking=none")


def doctor(tahoe: Tahoe, jobs: Jobs, *more: str) -> tuple[int, list[dict[str, str]]]:
    done = tahoe("doctor", "--json", f"data.url='{jobs.digits}'", *SIZE, *more, check=False)
    return done.returncode, json.loads(done.stdout)


def test_nodes_are_looked_at(jobs: Jobs, tmp_path: Path) -> None:
    code, found = doctor(Tahoe(tmp_path), jobs, "--on-nodes")
    assert {one["status"] for one in found} == {"ok"}, found
    assert code == 0
    said = {one["name"]: one["message"] for one in found}
    assert "node1: 0, node2: 0" in said["GPUs"]
    assert "on 2 nodes" in said["software"]
    assert "GB/s between 4 ranks" in said["all-reduce"]
    assert "MB/s a node" in said["shards"]
    assert "clocks differ by" in said["clocks"]
    assert list((tmp_path / "runs" / "doctor").iterdir()) == []  # all was well


def test_what_slurm_does_not_take_is_told(jobs: Jobs, tmp_path: Path) -> None:
    code, found = doctor(Tahoe(tmp_path), jobs, "slurm.partition=gpuu", "--on-nodes")
    slurm, nodes = found[-2:]
    assert (code, slurm["name"], slurm["status"]) == (1, "Slurm", "fail")
    assert "Invalid partition" in slurm["message"]
    assert nodes["message"] == "not checked: Slurm does not take the job"


def test_ranks_that_cannot_meet_are_told(jobs: Jobs, tmp_path: Path) -> None:
    missing = "runtime.network_interface=ib0"
    code, found = doctor(Tahoe(tmp_path), jobs, "--on-nodes", missing)
    assert (code, found[-1]["status"]) == (1, "fail")
    assert f"{missing}: node1 has no ib0" in found[-1]["message"]
    assert "Traceback" not in found[-1]["message"]
    assert len(list((tmp_path / "runs" / "doctor").iterdir())) == 1  # to be read


@contextmanager
def hidden_on_node2(jobs: Jobs, path: Path) -> Iterator[None]:
    """Let a node see an empty directory in place of one that the others share."""
    pid = (jobs.cluster.directory / "slurmd-node2.pid").read_text().strip()
    on_node2 = ["nsenter", f"--target={pid}", "--mount"]
    subprocess.run([*on_node2, "mount", "-t", "tmpfs", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run([*on_node2, "umount", path], check=True)


def test_a_node_that_does_not_see_the_directory_is_named(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with hidden_on_node2(jobs, tmp_path / "runs"):
        code, found = doctor(Tahoe(tmp_path), jobs, "--on-nodes")
    assert (code, found[-1]["name"], found[-1]["status"]) == (1, "run directory", "fail")
    assert found[-1]["message"].startswith(f"node2 cannot see {tmp_path}/runs/doctor/")


def test_data_that_one_node_cannot_read_hides_nothing_else(
    jobs: Jobs, digits: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "set"
    shutil.copytree(digits, copy)
    with hidden_on_node2(jobs, copy):
        code, found = doctor(Tahoe(tmp_path), jobs, "--on-nodes", f"data.url='{copy}'")
    assert code == 1
    (failed,) = [one for one in found if one["status"] == "fail"]
    assert failed["name"] == "shards"
    assert (
        "1 of 2 nodes cannot read the data, as node2: DataError: no data set" in failed["message"]
    )
    assert "all-reduce" in [one["name"] for one in found]


def test_an_interrupt_cancels_the_job(jobs: Jobs, tmp_path: Path) -> None:
    held = "+slurm.additional_parameters={hold: true}"
    watched = Tahoe(tmp_path).start(
        *("doctor", "--on-nodes", f"data.url='{jobs.digits}'", *SIZE, held)
    )
    job_id = watched.wait_for("pending").split()[1].rstrip(":")
    watched.process.send_signal(signal.SIGINT)
    watched.wait_for(f"job {job_id} is cancelled")
    assert watched.finish() != 0
    assert client.queued_jobs([job_id])[job_id].state == "CANCELLED"
