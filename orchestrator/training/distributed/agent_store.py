"""A store of its own for each start of the ranks by torchrun.

torchrun's agents keep one TCPStore while they restart ranks, without a prefix for each start (torch
2.14: `elastic/rendezvous/dynamic_rendezvous.py`, `distributed/rendezvous.py`). A restarted rank
would find there what the ranks before it have left, and connect to dead processes: gloo between two
hosts failed of it. So rank 0 serves a new store, and the agents' store only has its port.
"""

import os
import socket
import time
from datetime import timedelta
from uuid import uuid4

from torch._C._distributed_c10d import Store, TCPStore  # torch.distributed declares no TCPStore

_KEY = "tahoe/store"
_POLL_S = 0.05
_CONNECT_S = 5.0


def is_shared() -> bool:
    """Check whether the store at MASTER_ADDR and MASTER_PORT outlives the ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def open_store(rank: int, timeout: timedelta) -> Store:
    """Open the store of this start of the ranks, which rank 0 serves.

    Raises:
        TimeoutError: rank 0 has not come.
    """
    host = os.environ["MASTER_ADDR"]
    agents = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    if rank == 0:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        token = uuid4().hex
        store.set(token, "")
        agents.set(_KEY, f"{store.port} {token}")
        return store
    deadline_s = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline_s:
        port, token = agents.get(_KEY).decode().split()  # waits for the first start's
        if found := _connect(host, int(port), token, rank):
            found.set_timeout(timeout)
            return found
        time.sleep(_POLL_S)
    raise TimeoutError(f"rank 0 has not opened a store on {host} in {timeout}")


def _connect(host: str, port: int, token: str, rank: int) -> TCPStore | None:
    """Connect to the store that rank 0 has announced; None if it is an earlier start's."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
        timeout = timedelta(seconds=_CONNECT_S)
        store = TCPStore(host, port, is_master=False, timeout=timeout)
        is_new = store.check([token]) and store.add(f"{token}/{rank}", 1) == 1
    except (OSError, RuntimeError):  # nobody listens, or another program does
        return None
    return store if is_new else None
