"""Processes that work for a rank: started from a clean fork server, deaf to signals, gone with it.

Forking a process that has threads and sockets of torch.distributed, or an event loop of fsspec, is
unsafe. A fork server has none of them, and what it has imported, its children need not import.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerContext


def forkserver_context(*modules: str) -> ForkServerContext:
    """Return the context of a server that imports once what every worker needs.

    A worker runs the main module again. With torch and the other modules of main's package there
    already, that takes 0.1 s, not seconds.

    Args:
        modules: to be imported there, besides those of main's package.
    """
    context = multiprocessing.get_context("forkserver")
    main = sys.modules["__main__"].__spec__  # None for a script
    package = f"{main.name.partition('.')[0]}." if main else __name__
    of_main = (name for name in sys.modules if name.startswith(package))
    context.set_forkserver_preload([*modules, *of_main])
    return context


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Let the processes that are started here never see what Slurm sends to a whole step.

    Only the rank itself answers a signal, at a step boundary. A blocked signal stays blocked in
    children from their first instruction on, while the rank gets its own as soon as this ends.
    """
    for_the_rank = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, for_the_rank)
    try:
        resource_tracker.ensure_running()  # of multiprocessing; it unblocks two of them
        signal.pthread_sigmask(signal.SIG_BLOCK, for_the_rank)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
    """Let this worker end when its rank was killed: its parent, the fork server, lives on."""
    rank = multiprocessing.parent_process()
    assert rank is not None

    def wait() -> None:
        rank.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def kill_workers() -> None:
    """End the workers of a rank that crashed: they do not hear the SIGTERM that others send."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
