"""The speed of training, the time it waits for data, and the memory that it takes."""

import resource
import time
from collections.abc import Iterator, Mapping

import torch

from data_sharding.loading.loader import Batch
from orchestrator.run.plan import training_petaflop


class ThroughputMeter:
    """Measure between two calls of `pop`, without what is not training (evaluating, saving)."""

    def __init__(self) -> None:
        self._since_s = self._step_since_s = time.perf_counter()
        self._wait_s = self.excluded_s = 0.0
        self._num_images = 0
        self._step_times_s: list[float] = []

    def wrap(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on, timing the wait for each."""
        while True:
            start_s = time.perf_counter()
            batch = next(batches, None)
            self._wait_s += time.perf_counter() - start_s
            if batch is None:
                return
            yield batch

    def end_step(self, num_images: int) -> None:
        """Note the end of a step.

        Args:
            num_images: this rank's images of the step. They are not those that were read meanwhile:
                CUDA batches are read one ahead, so that the last step of a run may read none.
        """
        self._num_images += num_images
        now_s = time.perf_counter()
        self._step_times_s.append(now_s - self._step_since_s)
        self._step_since_s = now_s

    @property
    def elapsed_s(self) -> float:
        """The time since the last call of `pop`."""
        return max(time.perf_counter() - self._since_s, 1e-9)

    def pop(self) -> dict[str, float]:
        """Return this rank's metrics since the last call.

        Memory is the peak: on the host that of the rank, without the workers that read its data.
        """
        elapsed_s = self.elapsed_s
        times_s = sorted(self._step_times_s) or [elapsed_s]
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        metrics = {
            "perf/images_per_s": self._num_images / elapsed_s,
            "perf/host_mem_peak_gb": peak_kb * 1024 / 1e9,
            "perf/data_wait_fraction": self._wait_s / elapsed_s,
            "perf/step_time_p50_s": times_s[round(0.5 * (len(times_s) - 1))],
            "perf/step_time_p95_s": times_s[round(0.95 * (len(times_s) - 1))],
        }
        if torch.cuda.is_available():
            metrics["perf/gpu_mem_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self._since_s, self._wait_s, self._num_images = time.perf_counter(), 0.0, 0
        self._step_times_s = []
        return metrics

    def exclude(self, elapsed_s: float) -> None:
        """Leave out time that was not spent on training."""
        self.excluded_s += elapsed_s
        self._since_s += elapsed_s
        self._step_since_s += elapsed_s


def flops_metrics(
    cost: Mapping[str, float],
    num_images: float,
    images_per_s: float,
    peak_tflops: float | None,
) -> dict[str, float]:
    """Compute the operations spent so far, and the rate of spending them.

    Args:
        cost: the network's, from `task.model.model_cost`.
        num_images: the images seen in training; smaller ones count, here and in the rate, by their
            area.
        peak_tflops: 10**12 operations a second that the devices of all ranks could do; MFU is the
            fraction of it that the network's operations take (Chowdhery et al. 2022,
            arXiv:2204.02311, appendix B).
    """
    tflops = 1000 * training_petaflop(cost, images_per_s)
    metrics = {"perf/total_pflop": training_petaflop(cost, num_images), "perf/tflops": tflops}
    return metrics | ({"perf/mfu": tflops / peak_tflops} if peak_tflops else {})
