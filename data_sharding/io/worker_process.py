"""Worker processes of a rank: started from a clean fork server, deaf to signals, ending with it.

Forking a process that has threads and sockets of torch.distributed, or an event loop of fsspec, is
unsafe. A fork server has none of them, and its children need not import what it has imported.
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
    """Return the context of a fork server that imports what its workers need.

    A worker runs the main module again. With torch and the other modules of main's package already
    imported, that takes 0.1 s instead of seconds.

    Args:
        modules: modules to import there besides those of main's package.
    """
    context = multiprocessing.get_context("forkserver")
    main = sys.modules["__main__"].__spec__  # None for a script
    package = f"{main.name.partition('.')[0]}." if main else __name__
    context.set_forkserver_preload([*modules, *(m for m in sys.modules if m.startswith(package))])
    return context


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block, in processes started here, the signals that Slurm sends to all processes of a step.

    Only the rank itself acts on a signal, at a step boundary. A blocked signal stays blocked in
    children from their first instruction on; the rank receives its own as soon as this ends.
    """
    rank_signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, rank_signals)
    try:
        resource_tracker.ensure_running()  # of multiprocessing; it unblocks two of them
        signal.pthread_sigmask(signal.SIG_BLOCK, rank_signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
    """Exit this worker when its rank is killed: its parent process, the fork server, lives on."""
    rank = multiprocessing.parent_process()
    assert rank is not None

    def exit_after_rank() -> None:
        rank.join()
        os._exit(1)

    threading.Thread(target=exit_after_rank, daemon=True).start()


def kill_workers() -> None:
    """Kill the workers of a crashed rank: they block the SIGTERM that others would send."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
