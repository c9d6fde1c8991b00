"""The memory that batches travel in: a few slots, shared with the workers and used again and again.

Fresh memory costs a page fault every 4 KiB, which is more than the copying. A slot is written by
one worker, read by the rank, and then the next one's.
"""

import os
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from data_sharding.errors import DataError, UnavailableError

SHARED_MEMORY = "/dev/shm"  # noqa: S108  where torch puts what processes share


class SharedBuffers:
    """`num_slots` buffers of `num_bytes` each.

    Args:
        shared: with the processes that this object is sent to.
        pinned: locked in memory, so that CUDA copies from it without waiting.
    """

    def __init__(self, num_slots: int, num_bytes: int, *, shared: bool, pinned: bool) -> None:
        self._slots = torch.zeros(num_slots, num_bytes, dtype=torch.uint8)
        self._is_pinned = False
        if shared:
            self._slots.share_memory_()
        if pinned:
            self._pin()

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, slot: int) -> NDArray[np.uint8]:
        """Return a slot to be written; shape (num_bytes,)."""
        return self._slots[slot].numpy()

    def view(self, slot: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the images that lie in a slot as (n, height, width, channels)."""
        num_bytes = int(np.prod(shape))
        return self._slots[slot, :num_bytes].view(shape)

    def close(self) -> None:
        """Give up what CUDA holds of it."""
        if self._is_pinned:
            torch.cuda.cudart().cudaHostUnregister(self._slots.data_ptr())
            self._is_pinned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _pin(self) -> None:
        """Page-lock the slots where they lie; copies are merely slower where that is refused.

        As torch.distributed does with a shared state dict; CUDA Runtime API, memory management.
        """
        error = torch.cuda.cudart().cudaHostRegister(self._slots.data_ptr(), self._slots.numel(), 0)
        self._is_pinned = int(error) == 0


def check_space(num_bytes: int, remedy: str) -> None:
    """Check that there is so much shared memory.

    Args:
        remedy: what is set lower, besides the number of workers, so that less is needed.

    Raises:
        DataError: the machine has not so much.
        UnavailableError: others use it now.
    """
    stat = os.statvfs(SHARED_MEMORY)
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    if num_bytes > free:
        raise (DataError if num_bytes > total else UnavailableError)(
            f"the batches on their way from the workers need {num_bytes / 1e6:.0f} MB of shared "
            f"memory, and {SHARED_MEMORY} has {free / 1e6:.0f} of {total / 1e6:.0f} MB free: "
            "nothing can be loaded. Remove what others have left there, give it more (docker: "
            f"--shm-size), or set data.num_workers or {remedy} lower."
        )
