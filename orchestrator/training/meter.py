"""How fast training goes: images per second, and the share of the time spent waiting for data."""

import time
from collections.abc import Iterator

from data_sharding.loader import Batch


class Meter:
    """Measures between two readings; what is not training (evaluating, saving) is paused out."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()
        self._wait_s = 0.0
        self._num_images = 0

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on, timing how long each is waited for."""
        while True:
            start_s = time.perf_counter()
            batch = next(batches, None)
            self._wait_s += time.perf_counter() - start_s
            if batch is None:
                return
            self._num_images += len(batch.labels)
            yield batch

    def read(self) -> tuple[float, float]:
        """Return (images/s of this rank, data-wait share 0..1) since the last reading."""
        elapsed_s = max(time.perf_counter() - self._since_s, 1e-9)
        reading = (self._num_images / elapsed_s, self._wait_s / elapsed_s)
        self._since_s, self._wait_s, self._num_images = time.perf_counter(), 0.0, 0
        return reading

    def skip(self, elapsed_s: float) -> None:
        """Leave out time that was spent on something else."""
        self._since_s += elapsed_s
