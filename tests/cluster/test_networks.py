"""Networks that surprise: a port that somebody has, an interface that one node lacks."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from cluster_runs import Jobs, everything_said

from orchestrator.run.outcome import read_attempts

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
LISTEN = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))):
    print("listening", flush=True)
    sys.stdin.read()
"""


def in_network_of(jobs: Jobs, node: str) -> list[str]:
    pid = (jobs.cluster.directory / f"slurmd-{node}.pid").read_text().strip()
    return ["nsenter", f"--target={pid}", "--net"]


def ip(jobs: Jobs, node: str, *arguments: str) -> None:
    subprocess.run([*in_network_of(jobs, node), "ip", *arguments], check=True)


@contextmanager
def on_node(jobs: Jobs, node: str, *command: str) -> Iterator[None]:
    """Run a command in a node's network from its first line of output to the end of the block."""
    process = subprocess.Popen(
        [*in_network_of(jobs, node), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    try:
        yield
    finally:
        process.communicate(timeout=30)


@pytest.fixture
def ib0(jobs: Jobs) -> Iterator[None]:
    """Give two of the three nodes an interface of this name, a dead end."""
    for node in ("node1", "node3"):
        ip(jobs, node, "link", "add", "ib0", "type", "veth", "peer", "name", "ib0-peer")
        ip(jobs, node, "link", "set", "ib0", "up")
    yield
    for node in ("node1", "node3"):
        ip(jobs, node, "link", "del", "ib0")


def test_a_taken_port_and_a_node_without_the_interface(jobs: Jobs, ib0: None) -> None:
    """The job is held until its first port is taken; then node2 is the only one without ib0."""
    run = jobs.submit(
        *("surprised", "recipe.steps=4", "+slurm.additional_parameters={hold: true}"),
        "runtime.network_interface='eth0,ib0'",
    )
    job = jobs.job(run)
    assert job is not None
    port = 20000 + (int(job.job_id) * 101 + 1) % 12000
    with ExitStack() as stack:
        for node in jobs.cluster.names:
            stack.enter_context(on_node(jobs, node, sys.executable, "-c", LISTEN, str(port)))
        subprocess.run(["scontrol", "release", job.job_id], check=True)
        jobs.wait_for_end(run)
    assert run.is_finished, everything_said(run)
    taken, *unfit, finished = read_attempts(run).values()
    assert "EADDRINUSE" in taken["why"]
    assert (taken["crashed"], taken["next"]) == (False, "restart")
    assert [line["failed_node"] for line in unfit] == ["node2", "node2"]
    assert all("node2 has no ib0" in line["why"] for line in unfit)
    assert finished["nodes"] == "node[1,3]"
