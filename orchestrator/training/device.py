"""From bytes on the host to normalised images on the device, in the recipe's precision."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from data_sharding.loader import Batch
from orchestrator.config import Config

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """A device, and how images are prepared on it."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format
    mean: torch.Tensor  # (channels, 1, 1), of pixels 0..255
    std: torch.Tensor

    @classmethod
    def create(cls, config: Config, device: torch.device) -> "Device":
        mean, std = (
            255 * torch.tensor(values, device=device).view(-1, 1, 1)
            for values in (config.data.mean, config.data.std)
        )
        layout = torch.channels_last if config.recipe.channels_last else torch.contiguous_format
        return cls(device, _DTYPES[config.recipe.precision], layout, mean, std)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)

    def images(self, batch: Batch) -> torch.Tensor:
        """Return float32 images (n, channels, size, size), normalised."""
        images = self.move(batch.images).to(torch.float32, memory_format=self.memory_format)
        return images.sub_(self.mean).div_(self.std)

    def autocast(self) -> AbstractContextManager[object]:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled)
