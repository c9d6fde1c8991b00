"""`tahoe local-cluster`: a real Slurm on this machine, whose nodes can be lost."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.shared.arguments import PATH, POSITIVE, run_argument
from orchestrator.cli.shared.commands import Group
from orchestrator.number_format import pluralize

if TYPE_CHECKING:
    from slurm.local_cluster import LocalCluster

_directory_argument = click.argument(
    "directory", required=False, type=PATH, metavar="[DIR]", help="cluster; default: $SLURM_CONF"
)
_node_argument = click.argument("node", help="name of the node")


@click.group("local-cluster", cls=Group)
def local_cluster() -> None:
    """Run a real Slurm on this machine, whose nodes may be lost."""


@local_cluster.command()
@click.option("--nodes", type=POSITIVE, default=3, help="number of nodes")
def up(nodes: int) -> None:
    """Start a cluster."""
    from slurm.local_cluster import LocalCluster

    cluster = LocalCluster.start(nodes)
    names = ", ".join(cluster.names)
    print(f"# Idle: {pluralize(len(cluster.names), 'node')}, {names}. In this shell:")
    for name, value in cluster.environ.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"# and at the end: tahoe local-cluster down {shlex.quote(str(cluster.directory))}")


@local_cluster.command()
@_directory_argument
def down(directory: Path | None) -> None:
    """Stop a cluster and everything that runs on it."""
    _open(directory).down()


@local_cluster.command("kill-node")
@_node_argument
@_directory_argument
def kill_node(node: str, directory: Path | None) -> None:
    """Disconnect a node, as if it had lost power."""
    _open(directory).kill_node(node)


@local_cluster.command("revive-node")
@_node_argument
@_directory_argument
def revive_node(node: str, directory: Path | None) -> None:
    """Bring a killed node back."""
    _open(directory).revive_node(node)


@local_cluster.command()
@run_argument
@_directory_argument
def preempt(run: Path, directory: Path | None) -> None:
    """Let an urgent job take the nodes of a run for a moment."""
    from orchestrator.jobs.submit import active_job
    from orchestrator.run.rundir import RunDir, RunError

    run_dir = RunDir(run.absolute())
    job = active_job(run_dir)
    if job is None or job.state != "RUNNING":
        raise RunError(f"{run_dir.id} has no running job, so nothing was preempted", value=run)
    _open(directory).preempt(job.job_id)


def _open(directory: Path | None) -> "LocalCluster":
    from slurm.local_cluster import LocalCluster, LocalClusterError

    if directory is None:
        if "SLURM_CONF" not in os.environ:
            raise LocalClusterError(
                "no cluster is selected",
                hint="Give its directory, or export SLURM_CONF as `tahoe local-cluster up` prints.",
            )
        directory = Path(os.environ["SLURM_CONF"]).parent
    return LocalCluster.open(directory.absolute())
