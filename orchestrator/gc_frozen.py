"""Keep the garbage collector away from objects that stay."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Keep the collector from traversing the objects of the block, in it and later.

    It takes a third of the time to import torch and MLflow, a fifth of that to load ten thousand
    runs, and a second at the end of a process that has imported them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def freeze_gc_at_exit() -> None:
    """Keep the collector from traversing all modules when the interpreter ends."""
    atexit.register(gc.freeze)
