"""A real Slurm cluster on this machine, to try what a cluster does to a job.

Every node is a network namespace with an address and a slurmd of its own; slurmctld and munged run
beside them. Nothing outside of the cluster's directory is touched but network devices and
namespaces, whose names begin with the cluster's. It needs root, and Debian's packages slurm-wlm,
munge and iproute2. The settings are documented in slurm.conf(5) and cgroup.conf(5), version 22.05.
"""

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Self

from slurm.errors import SlurmError

PROGRAMS = {  # and the packages that have them
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "munged": "munge",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
_TIMEOUT_S = 30
_SUBNETS = range(10, 250)
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

# cred_expire is also the time that a requeued job waits: two minutes by default. SlurmctldPort is a
# port of this machine, not of a node's namespace.
_SLURM_CONF = Template("""\
ClusterName=$prefix
SlurmctldHost=$host($address)
SlurmctldPort=$port
SlurmdPort=6818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$directory/munge/socket,cred_expire=5
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool/%n
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd-%n.pid
SlurmctldLogFile=$directory/log/slurmctld.log
SlurmdLogFile=$directory/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdTimeout=10
KillWait=10
ReturnToService=2
JobRequeue=1
MaxArraySize=10001
MaxJobCount=20000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
$nodes
PartitionName=train Nodes=ALL Default=YES PriorityTier=1 DefMemPerCPU=500
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=off DefMemPerCPU=500
""")


class LocalClusterError(SlurmError):
    """The local cluster cannot be started, or does not run."""


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster.

    Args:
        directory: the directory of all its files.
        subnet: the number in its addresses 10.77.subnet.*, and in the names of its devices.
        names: the names of the nodes.
    """

    directory: Path
    subnet: int
    names: tuple[str, ...]

    @property
    def environ(self) -> dict[str, str]:
        """The variables that direct Slurm's commands to this cluster."""
        return {"SLURM_CONF": str(self.directory / "slurm.conf")}

    @property
    def prefix(self) -> str:
        return f"tahoe{self.subnet}"

    @classmethod
    def start(cls, num_nodes: int, *, cpus_per_node: int = 2) -> Self:
        """Start a cluster in a new directory and return when its nodes are idle."""
        if requirements := missing_requirements():
            raise LocalClusterError(
                "a local cluster cannot be started here: it needs root, Slurm and munge",
                value=requirements,
                hint="Missing: " + "; ".join(requirements),
            )
        # Not in a directory of the user's choice: slurm.conf allows no blanks, a socket 100 bytes.
        directory = Path(tempfile.mkdtemp(prefix="tahoe-local-cluster-", dir="/tmp"))
        directory.chmod(0o755)
        cluster = cls(directory, _take_subnet(), tuple(f"node{i + 1}" for i in range(num_nodes)))
        try:
            facts = {"subnet": cluster.subnet, "names": cluster.names}
            (directory / "cluster.json").write_text(json.dumps(facts))
            cluster._start(cpus_per_node)
        except BaseException:
            cluster.down(keep_logs=True)
            raise
        return cluster

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open the cluster that was started in a directory."""
        try:
            facts = json.loads((directory / "cluster.json").read_text())
        except FileNotFoundError:
            raise LocalClusterError(
                f"no local cluster at {directory}: it has no cluster.json",
                value=directory,
                hint="Give the directory that was printed when the cluster was started.",
            ) from None
        return cls(directory, facts["subnet"], tuple(facts["names"]))

    def down(self, *, keep_logs: bool = False) -> None:
        """End every process of the cluster and of its jobs, and remove all its files."""
        for pid in self._all_pids():
            _end(pid)
        for i, name in enumerate(self.names):
            _run("ip", "netns", "del", self._namespace(name), check=False)
            _run("ip", "link", "del", self._outer_device(i), check=False)
        _run("ip", "link", "del", _bridge(self.subnet), check=False)
        if not keep_logs:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill_node(self, name: str) -> None:
        """Cut a node's network and kill its processes, like a power failure."""
        self._check_name(name)
        self._ip(name, "link", "set", "eth0", "down")
        for pid in self._pids_in(name):
            _kill(pid)

    def revive_node(self, name: str) -> None:
        """Restore a killed node's network and slurmd, and return when it is idle."""
        self._check_name(name)
        self._ip(name, "link", "set", "eth0", "up")
        self._start_slurmd(name)
        responds = ("idle", "down", "down*")
        self._wait_for(lambda: self.states()[name] in responds, f"{name} responds")
        self._slurm("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        self._wait_for(lambda: self.states()[name] == "idle", f"{name} is idle")

    def preempt(self, job_id: str) -> None:
        """Let an urgent job of a few seconds take all nodes of a running job."""
        out = self._slurm("squeue", "--noheader", f"--jobs={job_id}", "--format=%N %D").stdout
        nodes, num_nodes = out.split()
        self._slurm(
            "sbatch", "--partition=urgent", f"--nodelist={nodes}", f"--nodes={num_nodes}",
            "--exclusive", "--mem=0", "--output=/dev/null", "--wrap=sleep 3",
        )  # fmt: skip

    def states(self) -> dict[str, str]:
        """Return the state of each node in sinfo's words."""
        out = self._slurm("sinfo", "--noheader", "--Node", "--format=%N %t").stdout
        return dict(line.split() for line in out.splitlines())

    # -- starting -------------------------------------------------------------------------------

    def _start(self, cpus_per_node: int) -> None:
        self._write_config(cpus_per_node)
        self._start_network()
        munge = self.directory / "munge"
        self._daemon(
            "munged", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self._daemon("slurmctld", "-i", environ=self.environ)
        for name in self.names:
            self._start_slurmd(name)
        self._wait_for(lambda: set(self.states().values()) == {"idle"}, "all nodes are idle")

    def _write_config(self, cpus_per_node: int) -> None:
        for name in ("munge", "state", "spool", "log"):
            (self.directory / name).mkdir(mode=0o755)
        key = self.directory / "munge/key"
        key.touch(mode=0o400)
        key.write_bytes(secrets.token_bytes(128))
        hosts = {"127.0.0.1": "localhost", self._address(0): _hostname()}
        hosts |= {self._address(i): name for i, name in enumerate(self.names, start=1)}
        lines = "".join(f"{address} {name}\n" for address, name in hosts.items())
        (self.directory / "hosts").write_text(lines)
        memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        node_mb = memory_mb // (len(self.names) + 1)
        nodes = (
            f"NodeName={name} NodeAddr={self._address(i)} CPUs={cpus_per_node} "
            f"RealMemory={node_mb} State=UNKNOWN"
            for i, name in enumerate(self.names, start=1)
        )
        slurm_conf = _SLURM_CONF.substitute(
            prefix=self.prefix,
            host=_hostname(),
            address=self._address(0),
            port=16_800 + self.subnet,
            directory=self.directory,
            nodes="\n".join(nodes),
        )
        (self.directory / "slurm.conf").write_text(slurm_conf)
        version = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
        cgroup_conf = f"CgroupPlugin=cgroup/{version}\nCgroupMountpoint=/sys/fs/cgroup\n"
        (self.directory / "cgroup.conf").write_text(cgroup_conf)

    def _start_network(self) -> None:
        bridge = _bridge(self.subnet)
        _run("ip", "addr", "add", f"{self._address(0)}/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for i, name in enumerate(self.names):
            namespace, outer = self._namespace(name), self._outer_device(i)
            _run("ip", "netns", "add", namespace)
            peer = ("peer", "name", "eth0", "netns", namespace)
            _run("ip", "link", "add", outer, "type", "veth", *peer)
            _run("ip", "link", "set", outer, "master", bridge, "up")
            self._ip(name, "addr", "add", f"{self._address(i + 1)}/24", "dev", "eth0")
            self._ip(name, "link", "set", "eth0", "up")
            self._ip(name, "link", "set", "lo", "up")

    def _start_slurmd(self, name: str) -> None:
        # `ip netns exec` would mount another /sys, in which slurmd finds no cgroup.
        become = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
        self._daemon(
            "nsenter", f"--net=/run/netns/{self._namespace(name)}", "unshare", "--mount", "--uts",
            "sh", "-c", become, "sh", name, str(self.directory / "hosts"), "slurmd", "-N", name,
            environ=self.environ,
        )  # fmt: skip

    def _daemon(self, *command: str, environ: Mapping[str, str] | None = None) -> None:
        done = _run(*command, environ=environ, check=False)
        if done.returncode:
            raise LocalClusterError(
                f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}",
                value=command[0],
                hint=f"The cluster was ended; its logs are in {self.directory}/log.",
            )

    # -- names and queries ----------------------------------------------------------------------

    def _outer_device(self, i: int) -> str:
        return f"{self.prefix}v{i + 1}"

    def _address(self, number: int) -> str:
        return f"10.77.{self.subnet}.{number + 10 if number else 1}"

    def _namespace(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def _ip(self, name: str, *arguments: str) -> None:
        """Run `ip` inside a node."""
        _run("ip", "-netns", self._namespace(name), *arguments)

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            names = ", ".join(self.names)
            raise LocalClusterError(f"no node {name!r}", value=name, hint=f"The nodes are {names}.")

    def _pids_in(self, name: str) -> list[int]:
        done = _run("ip", "netns", "pids", self._namespace(name), check=False)
        return [int(pid) for pid in done.stdout.split()]

    def _all_pids(self) -> Iterator[int]:
        for name in self.names:
            yield from self._pids_in(name)
        for file in (self.directory / "slurmctld.pid", self.directory / "munge/pid"):
            if file.exists() and (text := file.read_text().strip()):
                yield int(text)

    def _slurm(self, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return _run(*command, environ=self.environ, check=check)

    def _wait_for(self, condition: Callable[[], bool], name: str) -> None:
        deadline_s = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < deadline_s:
            with suppress(subprocess.CalledProcessError, KeyError):  # slurmctld is still starting
                if condition():
                    return
            time.sleep(0.1)
        raise LocalClusterError(
            f"timed out after {_TIMEOUT_S} s, waiting until {name}",
            value=name,
            hint=f"The logs are in {self.directory}/log.",
        )


def missing_requirements() -> list[str]:
    """Return the requirements that this machine does not meet, each with its remedy."""
    requirements = [] if os.geteuid() == 0 else ["root (for network namespaces): use sudo"]
    if programs := [program for program in PROGRAMS if not shutil.which(program, path=_PATH)]:
        packages = " ".join(dict.fromkeys(PROGRAMS[program] for program in programs))
        install = f"apt-get install --no-install-recommends {packages}"
        requirements.append(f"{', '.join(programs)}: {install}")
    return requirements


def _take_subnet() -> int:
    """Return a subnet that no other local cluster uses, by creating its bridge."""
    for subnet in _SUBNETS:
        bridge = _bridge(subnet)
        device = Path("/sys/class/net", bridge)
        if device.exists():
            continue
        done = _run("ip", "link", "add", bridge, "type", "bridge", check=False)
        if done.returncode == 0:
            return subnet
        if not device.exists():  # and no other cluster was faster
            raise LocalClusterError(
                f"a network bridge cannot be created: {done.stderr.strip()}",
                value=bridge,
                hint="A local cluster needs CAP_NET_ADMIN, which a container has to be given.",
            )
    raise LocalClusterError(
        "too many local clusters run on this machine",
        value=len(_SUBNETS),
        hint="End one of them (`down`).",
    )


def _bridge(subnet: int) -> str:
    return f"tahoe{subnet}br"


def _hostname() -> str:
    return os.uname().nodename.partition(".")[0]


def _run(
    *command: str, environ: Mapping[str, str] | None = None, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, **(environ or {}), "PATH": _PATH}
    return subprocess.run(
        command, env=environ, check=check, capture_output=True, text=True, timeout=_TIMEOUT_S
    )


def _end(pid: int) -> None:
    """Kill a process and wait until it has ended."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        _kill(pid)
        select.select([process], [], [], _TIMEOUT_S)
        os.close(process)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
