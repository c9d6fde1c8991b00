"""The process that tests' workers are forked from."""

import multiprocessing
from multiprocessing import forkserver


def restart_fork_server() -> None:
    """Start it anew, with this environment, and with all that any worker needs.

    Left to itself it imports what the first test needs; each worker of another would then spend
    seconds on importing torch.
    """
    forkserver._forkserver._stop()
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["data_sharding.loading.loader"]
    )
    forkserver.ensure_running()
