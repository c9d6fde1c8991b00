"""The training batches of one rank, on the device, measured and counted as they pass."""

from collections.abc import Iterator
from pathlib import Path

from data_sharding.errors import DataError
from data_sharding.loading.loader import Batch, iter_batches
from orchestrator.config.schema import Config
from orchestrator.training.inputs.datasets import Datasets, SampleLog
from orchestrator.training.inputs.device import Device
from orchestrator.training.inputs.lookahead import NUM_STEPS, Ahead
from orchestrator.training.monitoring.metric_log import log_sample_ids
from orchestrator.training.monitoring.throughput import ThroughputMeter


class TrainBatches:
    """The micro-batches that a rank computes from a step on, in order. Must be closed.

    Args:
        samples_file: the file for the ids of the samples, if `logging.log_sample_ids`.
    """

    def __init__(
        self,
        datasets: Datasets,
        config: Config,
        device: Device,
        *,
        rank: int,
        first_step: int,
        samples_file: Path,
    ) -> None:
        keys = datasets.plan.micro_batches(rank, first_step)
        num_held = NUM_STEPS * datasets.plan.accumulation_steps
        self._loaded = iter_batches(
            *(datasets.train, keys, config.data.num_workers),
            pin_memory=device.is_cuda,
            num_held=num_held,
        )
        self._ahead = Ahead(self._loaded, num_held)
        self.meter = ThroughputMeter()
        self.samples = SampleLog("replaced by the next readable sample", "trained on")
        sent = device.prefetch_to_device(self.meter.wrap(iter(self._ahead)))
        self._batches = self.samples.wrap(sent)  # counted when used, not when read ahead
        if config.logging.log_sample_ids:
            self._batches = log_sample_ids(self._batches, keys, samples_file)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches

    @property
    def error(self) -> DataError | None:
        """The error of a batch that will be needed within the next steps."""
        return self._ahead.error

    def close(self) -> None:
        """End what reads ahead; it must not outlive the interpreter."""
        self._loaded.close()
