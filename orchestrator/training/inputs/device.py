"""From bytes on the host to normalised images on the device, in the recipe's precision."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_sharding.errors import DataError
from data_sharding.loading.loader import Batch
from orchestrator.config.schema import Config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """A device, and the preparation of images on it."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format
    mean: Tensor  # (channels, 1, 1), of pixels 0..255
    std: Tensor

    @classmethod
    def create(cls, config: Config, device: torch.device) -> "Device":
        mean, std = (
            255 * torch.tensor(values, device=device).view(-1, 1, 1)
            for values in (config.data.mean, config.data.std)
        )
        layout = torch.channels_last if config.recipe.channels_last else torch.contiguous_format
        return cls(device, DTYPES[config.recipe.precision], layout, mean, std)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def autocast(self) -> AbstractContextManager[object]:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled)

    def infer(
        self, model: Callable[[Tensor], Any], batches: Iterator[Batch]
    ) -> Iterator[tuple[Batch, Any]]:
        """Yield each batch, on the device, with the model's output: the loop of all evaluations."""
        for batch in self.prefetch_to_device(batches):
            with self.autocast():
                output = model(batch.images)
            yield batch, output

    def prefetch_to_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches on the device, their images as float32 and normalised.

        On CUDA one batch ahead, on a stream of its own, while the one before is worked on.
        """
        if self.is_cuda:
            yield from self._prefetch_on_stream(batches)
        else:
            yield from map(self._normalize, batches)

    def _prefetch_on_stream(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        stream = torch.cuda.Stream(self.device)
        sent: tuple[Batch, torch.cuda.Event] | None = None
        failure: DataError | None = None
        try:
            for batch in batches:
                with torch.cuda.stream(stream):
                    sending = (self._normalize(batch), stream.record_event())
                if sent:
                    yield self._wait_for(*sent)
                sent = sending
        except DataError as error:  # of a batch after the one that was sent
            failure = error
        if sent:
            yield self._wait_for(*sent)
        if failure:
            raise failure

    def _wait_for(self, batch: Batch, copied: torch.cuda.Event) -> Batch:
        """Wait until a batch has been copied: from then on the loader may reuse its memory."""
        copied.synchronize()
        for tensor in (batch.images, batch.labels, batch.readable):
            tensor.record_stream(torch.cuda.current_stream(self.device))
        return batch

    def _normalize(self, batch: Batch) -> Batch:
        images = self.to_device(batch.images).to(torch.float32, memory_format=self.memory_format)
        return batch._replace(
            images=images.sub_(self.mean).div_(self.std),
            labels=self.to_device(batch.labels),
            readable=self.to_device(batch.readable),
        )
