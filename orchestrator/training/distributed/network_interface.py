"""The network interface that ranks meet over: one that this node has, and that others can reach."""

import ipaddress
import os
import socket

from orchestrator.config.parse import ConfigError


def use_interface(wanted: str | None, *, spans_nodes: bool, host: str | None = None) -> None:
    """Let gloo and NCCL use the wanted interface, or what they choose if that can work.

    Args:
        wanted: runtime.network_interface.
        spans_nodes: whether there are ranks on other nodes.
        host: this node's name for itself, by which gloo chooses.

    Raises:
        ConfigError: this node has no such interface, or gloo would tell the other nodes to meet
            this one at an address that is their own.
    """
    host = host or socket.gethostname()
    if wanted:
        _check_there(wanted, host)
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = wanted
    elif spans_nodes and "GLOO_SOCKET_IFNAME" not in os.environ:
        address = _address(host)
        if address is None or ipaddress.ip_address(address).is_loopback:
            known = f"{host} knows itself as {address}" if address else f"{host} has no address"
            raise ConfigError(
                f"{known} (/etc/hosts), where no other node can reach it. The ranks would not "
                f"meet. Set runtime.network_interface; {host} has {_interfaces()}."
            )


def _check_there(wanted: str, host: str) -> None:
    known = {name for _, name in socket.if_nameindex()}
    missing = [name for name in wanted.split(",") if name not in known]
    if missing:
        raise ConfigError(
            f"runtime.network_interface={wanted}: {host} has no {', '.join(missing)}, so the ranks "
            f"could not meet. It has {_interfaces()}."
        )


def _interfaces() -> str:
    return ", ".join(name for _, name in socket.if_nameindex() if name != "lo") or "none but lo"


def _address(host: str) -> str | None:
    """Return the first address that a name stands for: gloo takes that."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    return str(found[0][4][0])
