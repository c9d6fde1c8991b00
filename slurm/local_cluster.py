"""A real Slurm on this one machine, to try in minutes what a cluster would do to a job at night.

Every node is a network namespace with an address of its own and its own slurmd; slurmctld and
munged run beside them. Nothing outside of the rehearsal's directory is touched but network devices
and namespaces, whose names begin with the rehearsal's. It needs root, and Debian's packages
slurm-wlm, munge and iproute2. The settings are those of slurm.conf(5) and cgroup.conf(5), 22.05.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from slurm.errors import SlurmError

PROGRAMS = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "munged": "munge",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
_DEADLINE_S = 30
_SUBNETS = range(10, 250)


class LocalClusterError(SlurmError):
    """The local cluster cannot be started, or does not run."""


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that was started.

    Args:
        directory: everything of it lies there.
        subnet: its addresses are 10.77.subnet.*; devices and namespaces are named by it.
        names: of the nodes.
    """

    directory: Path
    subnet: int
    names: tuple[str, ...]

    @property
    def environ(self) -> dict[str, str]:
        """What makes Slurm's commands speak to this cluster."""
        return {"SLURM_CONF": str(self.directory / "slurm.conf")}

    @property
    def prefix(self) -> str:
        return f"tahoe{self.subnet}"

    @classmethod
    def start(cls, num_nodes: int, *, cpus_per_node: int = 2) -> Self:
        """Start a cluster in a directory of its own and return when its nodes are idle.

        Raises:
            LocalClusterError: something that it needs is missing, or it does not come up.
        """
        if lacking := missing():
            raise LocalClusterError(
                "a rehearsal cluster cannot be started here. Missing: " + "; ".join(lacking)
            )
        # Not where the user wants it: slurm.conf takes no blanks, a socket's path 100 bytes.
        directory = Path(tempfile.mkdtemp(prefix="tahoe-rehearsal-", dir="/tmp"))
        directory.chmod(0o755)
        cluster = cls(directory, _take_subnet(), tuple(f"node{i + 1}" for i in range(num_nodes)))
        try:
            (directory / "cluster.json").write_text(json.dumps(cluster._facts()))
            cluster._start(cpus_per_node)
        except BaseException:
            cluster.down(keep_logs=True)
            raise
        return cluster

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Return the cluster that was started in a directory.

        Raises:
            LocalClusterError: there is none.
        """
        try:
            facts = json.loads((directory / "cluster.json").read_text())
        except FileNotFoundError:
            raise LocalClusterError(
                f"no rehearsal cluster at {directory}: cluster.json is missing there. Give the "
                "directory that `tahoe rehearse up` printed."
            ) from None
        return cls(Path(facts["directory"]), facts["subnet"], tuple(facts["names"]))

    def down(self, *, keep_logs: bool = False) -> None:
        """End every process of the cluster and all that ran on it; leave nothing behind."""
        for pid in self._all_pids():
            _end(pid)
        for i, name in enumerate(self.names):
            _run("ip", "netns", "del", self._namespace(name), check=False)
            _run("ip", "link", "del", self._outer_device(i), check=False)
        _run("ip", "link", "del", _bridge(self.subnet), check=False)
        if not keep_logs:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill_node(self, name: str) -> None:
        """Cut a node's network and kill what runs on it, as if its power had gone.

        Raises:
            LocalClusterError: there is no such node.
        """
        self._check_name(name)
        self._ip(name, "link", "set", "eth0", "down")
        for pid in self._pids_in(name):
            _kill(pid, signal.SIGKILL)

    def revive_node(self, name: str) -> None:
        """Give a killed node its network and its slurmd back, and return when it is idle.

        Raises:
            LocalClusterError: there is no such node, or it does not come back.
        """
        self._check_name(name)
        self._ip(name, "link", "set", "eth0", "up")
        self._start_slurmd(name)
        self._wait_for(lambda: self.states()[name] in ("idle", "down", "down*"), f"{name} answers")
        self._slurm("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        self._wait_for(lambda: self.states()[name] == "idle", f"{name} is idle")

    def preempt(self, job_id: str) -> None:
        """Let an urgent job of a few seconds take all nodes of a job that runs."""
        out = self._slurm("squeue", "--noheader", f"--jobs={job_id}", "--format=%N %D").stdout
        nodes, num_nodes = out.split()
        self._slurm(
            "sbatch", "--partition=urgent", f"--nodelist={nodes}", f"--nodes={num_nodes}",
            "--exclusive", "--mem=0", "--output=/dev/null", "--wrap=sleep 3",
        )  # fmt: skip

    def states(self) -> dict[str, str]:
        """Return the state of each node, as sinfo says it."""
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
        idle = ["idle"] * len(self.names)
        self._wait_for(lambda: list(self.states().values()) == idle, "all nodes are idle")

    def _write_config(self, cpus_per_node: int) -> None:
        munge = self.directory / "munge"
        munge.mkdir(mode=0o755)
        key = munge / "key"
        key.touch(mode=0o400)
        key.write_bytes(secrets.token_bytes(128))
        for place in ("state", "spool", "log"):
            (self.directory / place).mkdir()
        hosts = {"127.0.0.1": "localhost", self._address(0): _hostname()}
        hosts |= {self._address(i + 1): name for i, name in enumerate(self.names)}
        lines = "".join(f"{address} {name}\n" for address, name in hosts.items())
        (self.directory / "hosts").write_text(lines)
        (self.directory / "slurm.conf").write_text(self._slurm_conf(cpus_per_node))
        (self.directory / "cgroup.conf").write_text(_cgroup_conf())

    def _slurm_conf(self, cpus_per_node: int) -> str:
        at = self.directory
        memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        settings = {
            "ClusterName": self.prefix,
            "SlurmctldHost": f"{_hostname()}({self._address(0)})",
            "SlurmctldPort": 16_800 + self.subnet,  # of this machine, not of a node's namespace
            "SlurmdPort": 6818,
            "SlurmUser": "root",
            "AuthType": "auth/munge",
            # cred_expire is also how long a requeued job waits: two minutes by default.
            "AuthInfo": f"socket={at}/munge/socket,cred_expire=5",
            "StateSaveLocation": at / "state",
            "SlurmdSpoolDir": at / "spool/%n",
            "SlurmctldPidFile": at / "slurmctld.pid",
            "SlurmdPidFile": at / "slurmd-%n.pid",
            "SlurmctldLogFile": at / "log/slurmctld.log",
            "SlurmdLogFile": at / "log/slurmd-%n.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "SlurmdTimeout": 10,
            "KillWait": 10,
            "ReturnToService": 2,
            "JobRequeue": 1,
            "MaxArraySize": 10_001,
            "MaxJobCount": 20_000,
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=2,bf_interval=2",
        }
        each_mb = memory_mb // (len(self.names) + 1)
        lines = [f"{key}={value}" for key, value in settings.items()]
        for i, name in enumerate(self.names):
            lines.append(
                f"NodeName={name} NodeAddr={self._address(i + 1)} CPUs={cpus_per_node} "
                f"RealMemory={each_mb} State=UNKNOWN"
            )
        lines.append("PartitionName=train Nodes=ALL Default=YES PriorityTier=1 DefMemPerCPU=500")
        lines.append(
            "PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=off DefMemPerCPU=500"
        )
        return "\n".join(lines) + "\n"

    def _start_network(self) -> None:
        _run("ip", "addr", "add", f"{self._address(0)}/24", "dev", _bridge(self.subnet))
        _run("ip", "link", "set", _bridge(self.subnet), "up")
        for i, name in enumerate(self.names):
            namespace, outer = self._namespace(name), self._outer_device(i)
            _run("ip", "netns", "add", namespace)
            _run(
                *("ip", "link", "add", outer, "type", "veth"),
                *("peer", "name", "eth0", "netns", namespace),
            )
            _run("ip", "link", "set", outer, "master", _bridge(self.subnet), "up")
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
                f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}. The "
                f"cluster was ended; its logs are in {self.directory}/log."
            )

    # -- looking --------------------------------------------------------------------------------

    def _outer_device(self, i: int) -> str:
        return f"{self.prefix}v{i + 1}"

    def _facts(self) -> dict[str, object]:
        return {**asdict(self), "directory": str(self.directory)}

    def _address(self, number: int) -> str:
        return f"10.77.{self.subnet}.{number + 10 if number else 1}"

    def _namespace(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def _ip(self, name: str, *arguments: str) -> None:
        """Run `ip` inside a node."""
        _run("ip", "-netns", self._namespace(name), *arguments)

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            raise LocalClusterError(f"no node {name!r} here; there are {', '.join(self.names)}")

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

    def _wait_for(self, is_true: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + _DEADLINE_S
        while True:
            try:
                if is_true():
                    return
            except (subprocess.CalledProcessError, KeyError):
                pass  # slurmctld does not answer yet
            if time.monotonic() > deadline_s:
                raise LocalClusterError(
                    f"waited {_DEADLINE_S} s until {what}, in vain. Its logs are in "
                    f"{self.directory}/log."
                )
            time.sleep(0.1)


def missing() -> list[str]:
    """Return what this machine lacks for a rehearsal, each with its remedy."""
    found = [] if os.geteuid() == 0 else ["root (network namespaces need it): use sudo"]
    lacking = [p for p in PROGRAMS if shutil.which(p, path=_PATH) is None]
    packages = " ".join(dict.fromkeys(PROGRAMS[program] for program in lacking))
    if lacking:
        found.append(f"{', '.join(lacking)}: apt-get install --no-install-recommends {packages}")
    return found


_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _take_subnet() -> int:
    """Return a number that no rehearsal uses: making the bridge is what takes it.

    Raises:
        LocalClusterError: a bridge cannot be made, or too many rehearsals run.
    """
    for subnet in _SUBNETS:
        bridge = _bridge(subnet)
        if _device(bridge).exists():
            continue
        made = _run("ip", "link", "add", bridge, "type", "bridge", check=False)
        if made.returncode == 0:
            return subnet
        if not _device(bridge).exists():  # nor has another rehearsal been faster
            raise LocalClusterError(
                f"a network bridge cannot be made: {made.stderr.strip()}. A rehearsal cluster "
                "needs the right to (CAP_NET_ADMIN, which a container has to be given)."
            )
    raise LocalClusterError("too many rehearsal clusters run here: end one (`tahoe rehearse down`)")


def _bridge(subnet: int) -> str:
    return f"tahoe{subnet}br"


def _device(name: str) -> Path:
    return Path("/sys/class/net", name)


def _cgroup_conf() -> str:
    version = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    return f"CgroupPlugin=cgroup/{version}\nCgroupMountpoint=/sys/fs/cgroup\n"


def _hostname() -> str:
    return os.uname().nodename.partition(".")[0]


def _run(
    *command: str, environ: Mapping[str, str] | None = None, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, **(environ or {}), "PATH": _PATH}
    return subprocess.run(
        command, env=environ, check=check, capture_output=True, text=True, timeout=_DEADLINE_S
    )


def _end(pid: int) -> None:
    """Kill a process and wait until it is gone."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    _kill(pid, signal.SIGKILL)
    select.select([process], [], [], _DEADLINE_S)
    os.close(process)


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
