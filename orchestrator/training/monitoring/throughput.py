"""How fast training goes, what it waits for, and what it takes."""

import resource
import time
from collections.abc import Iterator, Mapping

import torch

from data_sharding.loading.loader import Batch
from orchestrator.run.plan import training_petaflop


class ThroughputMeter:
    """Measures between two readings; what is not training (evaluating, saving) is left out."""

    def __init__(self) -> None:
        self._since_s = self._step_since_s = time.perf_counter()
        self._wait_s = 0.0
        self._num_images = 0
        self._steps_s: list[float] = []

    def wrap(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on, timing how long each is waited for."""
        while True:
            start_s = time.perf_counter()
            batch = next(batches, None)
            self._wait_s += time.perf_counter() - start_s
            if batch is None:
                return
            yield batch

    def end_step(self, num_images: int) -> None:
        """Note that a step has ended, of so many images of this rank.

        They are not those that were read meanwhile: on CUDA a batch is read ahead, so that the last
        step of a run may read none.
        """
        self._num_images += num_images
        now_s = time.perf_counter()
        self._steps_s.append(now_s - self._step_since_s)
        self._step_since_s = now_s

    def pop(self, num_ranks: int) -> dict[str, float]:
        """Return this rank's part since the last reading: the parts of all ranks add up.

        Rates and the host's memory are those of all ranks; the share of the time in which data is
        waited for, the lengths of steps, and the GPU's memory are means over ranks. Memory is what
        was taken at most: on the host by the rank, without what reads data for it.
        """
        elapsed_s = max(time.perf_counter() - self._since_s, 1e-9)
        steps_s = sorted(self._steps_s) or [elapsed_s]
        means = {
            "perf/data_wait_fraction": self._wait_s / elapsed_s,
            "perf/step_time_p50_s": steps_s[round(0.5 * (len(steps_s) - 1))],
            "perf/step_time_p95_s": steps_s[round(0.95 * (len(steps_s) - 1))],
        }
        if torch.cuda.is_available():
            means["perf/gpu_mem_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        taken_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sums = {
            "perf/images_per_s": self._num_images / elapsed_s,
            "perf/host_mem_peak_gb": taken_kb * 1024 / 1e9,
        }
        self._since_s, self._wait_s, self._num_images = time.perf_counter(), 0.0, 0
        self._steps_s = []
        return sums | {name: value / num_ranks for name, value in means.items()}

    def exclude(self, elapsed_s: float) -> None:
        """Leave out time that was spent on something else."""
        self._since_s += elapsed_s
        self._step_since_s += elapsed_s


def compute_figures(
    cost: Mapping[str, float],
    num_images: float,
    images_per_s: float,
    peak_tflops: float | None,
) -> dict[str, float]:
    """Return the compute spent so far, and how fast it is spent.

    Args:
        cost: of the network, as network.count_cost tells it.
        num_images: that training has seen; smaller ones count, here and in the rate, by their area.
        peak_tflops: 10**12 operations a second that the devices of all ranks could do; MFU is the
            share of it that the network's own operations are (Chowdhery et al. 2022,
            arXiv:2204.02311, appendix B).
    """
    tflops = 1000 * training_petaflop(cost, images_per_s)
    figures = {"perf/total_pflop": training_petaflop(cost, num_images), "perf/tflops": tflops}
    return figures | ({"perf/mfu": tflops / peak_tflops} if peak_tflops else {})
