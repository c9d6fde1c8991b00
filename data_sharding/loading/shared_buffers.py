"""The memory that batches travel in: a few slots, shared with the workers and reused.

Fresh memory costs a page fault every 4 KiB, which is more than the copying. A slot is written by
one worker, read by the rank, and then reused for another batch.
"""

import os
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from data_sharding.errors import DataError, UnavailableError

SHARED_MEMORY = "/dev/shm"  # noqa: S108  where torch puts memory that processes share


class SharedBuffers:
    """`num_slots` buffers of `num_bytes` each.

    Args:
        shared: whether processes that receive this object share its memory.
        pinned: whether to page-lock the memory, so that CUDA copies from it without waiting.
    """

    def __init__(self, num_slots: int, num_bytes: int, *, shared: bool, pinned: bool) -> None:
        self._slots = torch.zeros(num_slots, num_bytes, dtype=torch.uint8)
        self._is_pinned = False
        if shared:
            self._slots.share_memory_()
        if pinned:  # in place, as torch.distributed does; copies are merely slower if refused
            error = torch.cuda.cudart().cudaHostRegister(
                self._slots.data_ptr(), self._slots.numel(), 0
            )
            self._is_pinned = int(error) == 0

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, slot: int) -> NDArray[np.uint8]:
        """Return a slot to be written; shape (num_bytes,)."""
        return self._slots[slot].numpy()

    def view(self, slot: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the images in a slot as (n, height, width, channels)."""
        return self._slots[slot, : int(np.prod(shape))].view(shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._is_pinned:
            torch.cuda.cudart().cudaHostUnregister(self._slots.data_ptr())
            self._is_pinned = False


def check_space(num_bytes: int, size_key: str) -> None:
    """Check that there is enough shared memory.

    Args:
        size_key: the setting, besides the number of workers, that lowers the need.

    Raises:
        DataError: the machine has too little.
        UnavailableError: other processes use it now.
    """
    stat = os.statvfs(SHARED_MEMORY)
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    if num_bytes > free:
        raise (DataError if num_bytes > total else UnavailableError)(
            f"the batches on their way from the workers need {num_bytes / 1e6:.0f} MB of shared "
            f"memory, and {SHARED_MEMORY} has {free / 1e6:.0f} of {total / 1e6:.0f} MB free: "
            "nothing can be loaded",
            value=num_bytes,
            hint="Remove files left there by others, enlarge it (docker: --shm-size), or lower "
            f"`num_workers` or {size_key}.",
        )
