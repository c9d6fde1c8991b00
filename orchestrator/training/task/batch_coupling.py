"""Detection of networks that compute with all images of a micro-batch, which ranks cannot share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config


@torch.no_grad()
def check_images_are_independent(network: nn.Module, config: Config) -> None:
    """Refuse a network in which an image of a training batch changes the output for another.

    Batch norm does, and is computed by all ranks of a micro-batch; what else does (EvoNorm-B,
    attention over the batch) would see the images of one rank only.

    The network is left as it is.

    Raises:
        ConfigError: the images are not independent.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    size, device = config.data.image_size, next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, config.data.in_channels, size, size, generator=generator).to(device)
    output, other = (_first_output(network, images[[0, second]]) for second in (1, 2))
    network.train()
    if not torch.allclose(output, other, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ConfigError(
            f"model={config.model.name} has a layer other than batch norm that computes with all "
            f"images of a micro-batch, and recipe.num_micro_batches="
            f"{config.recipe.num_micro_batches} is less than the number of ranks, each of which "
            "would have a part of the images",
            value=config.model.name,
            hint="Use no more ranks than micro-batches, or another normalisation.",
        )


def _first_output(network: nn.Module, images: Tensor) -> Tensor:
    """Return the output in training for the first of some images, the same noise each time."""
    torch.manual_seed(0)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with _WithoutBatchNorm():
        output = functional_call(network, buffers, (images,))
    first: Tensor = (output[0] if isinstance(output, tuple) else output)[0]
    return first


class _WithoutBatchNorm(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func is F.batch_norm else func(*args, **(kwargs or {}))
