"""A real Slurm of three nodes for these tests, and runs that are undisturbed to compare with."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import Tahoe
from cluster_runs import NETWORK, Jobs

from orchestrator.run.rundir import RunDir
from slurm.local_cluster import LocalCluster, missing_requirements


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    if requirements := missing_requirements():
        pytest.skip("no local cluster here: " + "; ".join(requirements))
    cluster = LocalCluster.start(3)
    before = dict(os.environ)
    os.environ.update(cluster.environ)
    try:
        yield cluster
    finally:
        os.environ.clear()
        os.environ.update(before)
        cluster.down()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs of jobs")
    (path / "network.py").write_text(NETWORK)
    return path


@pytest.fixture(scope="session")
def jobs(cluster: LocalCluster, home: Path, digits: Path) -> Jobs:
    return Jobs(Tahoe(home), digits, cluster)


@pytest.fixture(scope="session")
def undisturbed(jobs: Jobs) -> RunDir:
    """Return a run of four ranks on this machine, without Slurm."""
    arguments = jobs.overrides("undisturbed")
    jobs.tahoe("train", *arguments, "launcher.nproc_per_node=4")
    return RunDir(jobs.tahoe.cwd / "undisturbed")
