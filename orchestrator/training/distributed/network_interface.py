"""The network interface that ranks connect over."""

import fcntl
import ipaddress
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from orchestrator.config.parse import ConfigError

_SIOCGIFADDR = 0x8915


def use_interface(name: str | None, *, spans_nodes: bool, host: str | None = None) -> None:
    """Set the interface of gloo and NCCL, or check that gloo's own choice can work.

    Args:
        name: one interface or several with commas (`runtime.network_interface`).
        spans_nodes: True if there are ranks on other nodes.
        host: this node's host name, by which gloo chooses an address.

    Raises:
        ConfigError: this node has no such interface, or its host name resolves to an address that
            other nodes cannot reach.
    """
    host = host or socket.gethostname()
    if name:
        _check_usable(name, host)
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
    elif spans_nodes and "GLOO_SOCKET_IFNAME" not in os.environ:
        address = _resolve(host)
        if address is None or ipaddress.ip_address(address).is_loopback:
            raise ConfigError(
                f"{host} resolves to {address or 'no address'} (/etc/hosts), which no other node "
                "can reach, so the ranks cannot connect",
                value=host,
                hint=f"Set runtime.network_interface; {host} has {_interfaces()}.",
            )


def _check_usable(names: str, host: str) -> None:
    known = {name for _, name in socket.if_nameindex()}
    for name in names.split(","):
        if name not in known or not _has_address(name):
            lacks = f"no address on {name}" if name in known else f"no {name}"
            raise ConfigError(
                f"runtime.network_interface={names}: {host} has {lacks}, so the ranks cannot "
                "connect",
                value=names,
                hint=f"{host} has {_interfaces()}.",
            )


def _has_address(name: str) -> bool:
    """Check whether an interface has an IPv4 or IPv6 address (netdevice(7), proc(5))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, suppress(OSError):
        fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        return True
    ipv6 = Path("/proc/net/if_inet6")
    return ipv6.exists() and name in (line.split()[-1] for line in ipv6.read_text().splitlines())


def _interfaces() -> str:
    return ", ".join(name for _, name in socket.if_nameindex() if name != "lo") or "none but lo"


def _resolve(host: str) -> str | None:
    """Resolve a host name to its first address, which is the one that gloo takes."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None
