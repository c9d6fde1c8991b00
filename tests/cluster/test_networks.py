"""Networks that surprise: taken ports, names without addresses, interfaces of one node."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cluster_runs import Jobs, everything_said

from orchestrator.run.outcome import read_attempts

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
IB_NODES = ("node1", "node3")
LISTEN = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))):
    print("listening", flush=True)
    sys.stdin.read()
"""


def in_namespace(jobs: Jobs, node: str, kind: str, *command: str) -> list[str]:
    pid = (jobs.cluster.directory / f"slurmd-{node}.pid").read_text().strip()
    return ["nsenter", f"--target={pid}", f"--{kind}", *command]


def inside(jobs: Jobs, node: str, kind: str, *command: str) -> None:
    """Run a command in a namespace of a node."""
    subprocess.run(in_namespace(jobs, node, kind, *command), check=True)


@contextmanager
def listening(jobs: Jobs, node: str, port: int) -> Iterator[None]:
    """Take a port of a node."""
    process = subprocess.Popen(
        in_namespace(jobs, node, "net", sys.executable, "-c", LISTEN, str(port)),
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
def odd_network(jobs: Jobs, tmp_path: Path) -> Iterator[None]:
    """Let nodes know no names but their own, as 127.0.1.1, and have no cable in node2's ib0."""
    for node in jobs.cluster.names:
        hosts = tmp_path / node
        hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {node}\n")
        inside(jobs, node, "mount", "mount", "--bind", str(hosts), "/etc/hosts")
    for node in IB_NODES:
        rename_interface(jobs, node, "eth0", "ib0")
    veth = ("type", "veth", "peer", "name", "ib0-peer")
    inside(jobs, "node2", "net", "ip", "link", "add", "ib0", *veth)
    yield
    inside(jobs, "node2", "net", "ip", "link", "del", "ib0")
    for node in IB_NODES:
        rename_interface(jobs, node, "ib0", "eth0")
    for node in jobs.cluster.names:
        inside(jobs, node, "mount", "umount", "/etc/hosts")


def rename_interface(jobs: Jobs, node: str, old: str, new: str) -> None:
    inside(jobs, node, "net", "ip", "link", "set", old, "down")
    inside(jobs, node, "net", "ip", "link", "set", old, "name", new, "up")


@pytest.mark.usefixtures("odd_network")
def test_a_taken_port_unknown_names_and_an_interface_without_address(jobs: Jobs) -> None:
    """The job is held until its first port is taken; then node2 has no address on ib0."""
    run = jobs.submit(
        *("surprised", "recipe.steps=4", "+slurm.additional_parameters={hold: true}"),
        "runtime.network_interface=ib0",
    )
    job = jobs.job(run)
    assert job is not None
    port = 20000 + (int(job.job_id) * 101 + 1) % 12000
    with ExitStack() as stack:
        for node in jobs.cluster.names:
            stack.enter_context(listening(jobs, node, port))
        subprocess.run(["scontrol", "release", job.job_id], check=True)
        jobs.wait_for_end(run)
    assert run.is_finished, everything_said(run)
    taken, *unfit, finished = read_attempts(run).values()
    assert "EADDRINUSE" in taken["why"]
    assert (taken["crashed"], taken["next"]) == (False, "restart")
    assert [line["failed_node"] for line in unfit] == ["node2", "node2"]
    assert all("node2 has no address on ib0" in line["why"] for line in unfit)
    assert finished["nodes"] == "node[1,3]"
