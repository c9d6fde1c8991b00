"""Hosts on this machine whose links have a rate, a delay and a loss, in namespaces without names.

    host 1: eth0 -- cable -- port 1 --+
    host 2: eth0 -- cable -- port 2 --+-- bridge, in the network namespace of this process

A namespace lives as long as a process in it, and the processes end with the one that started them:
nothing remains, however it ends. `tc` limits the rate on the way out of a host and out of a port.
Delay and loss are netem's. Where the kernel has none, a port drops what a classic BPF filter picks
at random, and a process between two TAP devices is the cable and delays what a host sends.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_CLONE_NEWNET = 0x40000000
_PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "sysctl": "procps"}
_PROGRAMS |= dict.fromkeys(("nsenter", "setpriv", "unshare"), "util-linux")
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
# A frame as long as a TCP segment before it is cut, which a network card would do.
_BURST, _QUEUE_MS = "128kb", 100
_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM: a random word, in linux/filter.h


@dataclass(frozen=True)
class Link:
    """What each link of a host does; 0 is no limit.

    Args:
        rate_mbit: in each direction.
        delay_ms: of what a host sends: half of the round trip between two hosts.
        loss: the probability that a packet to a host is lost.
    """

    rate_mbit: int = 0
    delay_ms: float = 0
    loss: float = 0

    def __str__(self) -> str:
        parts = [
            f"{self.rate_mbit} Mb/s" if self.rate_mbit else "no limit",
            f"{self.delay_ms:g} ms" if self.delay_ms else "",
            f"{100 * self.loss:g} % lost" if self.loss else "",
        ]
        return ", ".join(filter(None, parts))


def missing_requirements() -> list[str]:
    """Return what this machine lacks, each with its remedy."""
    missing = [] if os.geteuid() == 0 else ["root (for network namespaces): use sudo"]
    return missing + [
        f"{name}: apt-get install {package}"
        for name, package in _PROGRAMS.items()
        if not shutil.which(name)
    ]


class Hosts:
    """Some hosts, until the block ends; a process makes them once, in a network of its own.

    Args:
        is_delayed: whether links may have a delay: without netem, their cables are then processes.
    """

    def __init__(self, number: int, *, is_delayed: bool = False) -> None:
        self.number, self.has_netem = number, _has_netem()
        self._has_relays = is_delayed and not self.has_netem
        self._holders: list[subprocess.Popen[bytes]] = []
        self._relays: list[subprocess.Popen[bytes]] = []
        self._exit = ExitStack()
        self.congestion_control = ""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._end)
            _run("ip", "link", "add", "br0", "type", "bridge")
            _run("ip", "link", "set", "br0", "up")
            for index in range(self.number):
                self._add(index)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._exit.close()

    @staticmethod
    def address(index: int) -> str:
        return f"10.0.0.{index + 1}"

    def start(
        self, index: int, command: Sequence[str], **options: object
    ) -> "subprocess.Popen[str]":
        """Start a command on a host, which ends with this process."""
        inside = ("nsenter", f"--net=/proc/{self._holders[index].pid}/ns/net", *_DIES_WITH_US)
        return subprocess.Popen((*inside, *command), text=True, **options)  # type: ignore[call-overload, no-any-return]

    def shape(self, link: Link) -> None:
        """Give all links a rate, a delay and a loss."""
        for index in range(self.number):
            inside = self._inside(index)
            _run(*inside, "tc", "qdisc", "del", "dev", "eth0", "root", check=False)
            _run("tc", "qdisc", "del", "dev", _port(index), "root", check=False)
            if link.rate_mbit:
                _run(*inside, "tc", "qdisc", "add", "dev", "eth0", "root", *_tbf(link))
            if self.has_netem and (link.delay_ms or link.loss):
                self._shape_by_netem(index, link)
            elif link.loss:
                self._drop(index, link)
            elif link.rate_mbit:
                _run("tc", "qdisc", "add", "dev", _port(index), "root", *_tbf(link))
            if self._has_relays:
                relay = self._relays[index].stdin
                assert relay is not None
                relay.write(f"{link.delay_ms}\n".encode())
                relay.flush()

    def how(self, link: Link) -> str:
        """Name what limits, delays and loses packets."""
        parts = [
            "tbf" if link.rate_mbit else "",
            "netem" if self.has_netem and (link.delay_ms or link.loss) else "",
            "a relay between TAP devices" if self._has_relays else "",
            "htb and a random BPF filter" if link.loss and not self.has_netem else "",
        ]
        return ", ".join(filter(None, parts)) or "nothing"

    def _add(self, index: int) -> None:
        holder = subprocess.Popen(
            (*_DIES_WITH_US, "unshare", "--net", "cat"), stdin=subprocess.PIPE
        )
        self._holders.append(holder)
        _wait_for_namespace(holder.pid)
        port, inside = _port(index), self._inside(index)
        if self._has_relays:
            relay = Path(__file__).with_name("delay_relay.py")
            command = (*_DIES_WITH_US, sys.executable, str(relay), "host", port)
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._relays.append(process)
            assert process.stdout is not None
            process.stdout.readline()  # it has made its devices
            _run("ip", "link", "set", "host", "netns", str(holder.pid), "name", "eth0")
        else:
            peer = ("peer", "name", "eth0", "netns", str(holder.pid))
            _run("ip", "link", "add", port, "type", "veth", *peer)
        _run("ip", "link", "set", port, "master", "br0", "up")
        _run(*inside, "ip", "addr", "add", f"{self.address(index)}/24", "dev", "eth0")
        _run(*inside, "ip", "link", "set", "eth0", "up")
        _run(*inside, "ip", "link", "set", "lo", "up")
        self.congestion_control = _control_congestion(inside)

    def _shape_by_netem(self, index: int, link: Link) -> None:
        """Delay on the way out of the host, below its rate; lose and limit on the way in."""
        delay = ("netem", "delay", f"{link.delay_ms}ms", "limit", "100000")
        if link.delay_ms:
            parent = ("parent", "1:1") if link.rate_mbit else ("root",)
            _run(*self._inside(index), "tc", "qdisc", "add", "dev", "eth0", *parent, *delay)
        rate = ("rate", f"{link.rate_mbit}mbit") if link.rate_mbit else ()
        loss = ("loss", f"{100 * link.loss}%") if link.loss else ()
        way_in = ("netem", *loss, *rate, "limit", "100000")
        _run("tc", "qdisc", "add", "dev", _port(index), "root", *way_in)

    def _drop(self, index: int, link: Link) -> None:
        """Send packets at random to a class whose queue has no room; limit the rate of the rest.

        A host's rate limiter cuts what is longer than its burst into packets of the wire's size.
        """
        rate = f"{link.rate_mbit or 100_000}mbit"
        burst = ("burst", "4kb", "latency", f"{_QUEUE_MS}ms")
        _run(*self._inside(index), "tc", "qdisc", "replace", "dev", "eth0", "root",
             "tbf", "rate", rate, *burst)  # fmt: skip
        port, of_port = _port(index), ("dev", _port(index), "parent", "1:")
        _run("tc", "qdisc", "add", "dev", port, "root", "handle", "1:", "htb", "default", "1")
        for class_id in ("1:1", "1:2"):
            _run("tc", "class", "add", *of_port, "classid", class_id, "htb", "rate", rate,
                 "quantum", "60000")  # fmt: skip
        _run("tc", "qdisc", "add", "dev", port, "parent", "1:1", "pfifo", "limit", "1000")
        _run("tc", "qdisc", "add", "dev", port, "parent", "1:2", "pfifo", "limit", "0")
        threshold = int(2**32 * (1 - link.loss))
        picks = f"4,32 0 0 {_RANDOM},53 0 1 {threshold},6 0 0 4294967295,6 0 0 0"
        _run("tc", "filter", "add", *of_port, "protocol", "all", "prio", "1",
             "bpf", "bytecode", picks, "flowid", "1:2")  # fmt: skip

    def _inside(self, index: int) -> tuple[str, ...]:
        return ("nsenter", f"--net=/proc/{self._holders[index].pid}/ns/net")

    def _end(self) -> None:
        for process in (*self._relays, *self._holders):
            process.send_signal(signal.SIGKILL)
            process.wait()


def enter_own_network() -> None:
    """Move this process, which has one thread, into a network namespace of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    _run("ip", "link", "set", "lo", "up")


def _has_netem() -> bool:
    _run("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms", check=False)
    has = "netem" in _run("tc", "qdisc", "show", "dev", "lo")
    if has:
        _run("tc", "qdisc", "del", "dev", "lo", "root")
    return has


def _control_congestion(inside: Sequence[str]) -> str:
    """Choose Linux's default in a namespace, or Reno, which loses speed to loss as that does."""
    for name in ("cubic", "reno"):  # a kernel may keep cubic to itself
        key = "net.ipv4.tcp_congestion_control"
        _run(*inside, "sysctl", "-qw", f"{key}={name}", check=False)
        if _run(*inside, "sysctl", "-n", key).strip() == name:
            return name
    raise SystemExit("TCP has neither cubic nor reno")


def _tbf(link: Link) -> tuple[str, ...]:
    rate = f"{link.rate_mbit}mbit"
    return ("handle", "1:", "tbf", "rate", rate, "burst", _BURST, "latency", f"{_QUEUE_MS}ms")


def _port(index: int) -> str:
    return f"port{index + 1}"


def _wait_for_namespace(pid: int) -> None:
    """Wait until a process has left our network namespace."""
    ours = Path("/proc/self/ns/net").readlink()
    while Path(f"/proc/{pid}/ns/net").readlink() == ours:
        os.sched_yield()


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
