"""Running statistics of batch norm: the same on every rank, whatever the number of ranks.

A layer updates them with each micro-batch, s <- (1 - momentum) s + momentum x, which is linear in
s. So rank 0 starts a step from s and the others start from zero; each rank's result is decayed by
(1 - momentum) for every micro-batch of later ranks, and the sum over ranks is what one rank would
have computed alone. The sum is taken every step, so EMA, evaluation and checkpoints see the same
values on all ranks at any time. Of ranks that share a micro-batch, and so have equal statistics,
the first counts.

Other floating-point buffers that a checkpoint holds are broadcast from rank 0 after each step.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data_sharding.sampling.sample_order import Part
from orchestrator.training.distributed.world import World


class RunningStatistics:
    """Synchronises the running statistics and other saved buffers of a model over the ranks."""

    def __init__(self, model: nn.Module, world: World, part: Part) -> None:
        self._world, self._part = world, part
        self._layers: Sequence[Any] = [m for m in model.modules() if _has_local_statistics(m)]
        self._others = list(_other_buffers(model, self._layers))
        momenta = [math.nan if m.momentum is None else m.momentum for m in self._layers]
        self._momenta = torch.tensor(momenta, dtype=torch.float64, device=world.device)
        num_features = [m.num_features for m in self._layers]
        num_others = sum(getattr(module, name).numel() for module, name in self._others)
        sizes = [*num_features, *num_features, num_others]  # means, variances, other buffers
        self._sizes = torch.tensor(sizes, device=world.device)

    @contextmanager
    def synchronized(self) -> Iterator[None]:
        """Synchronise after the block, in which each rank computes equally many micro-batches."""
        if self._world.size == 1 or not (self._layers or self._others):
            yield
            return
        before = self._num_batches()
        training = [layer for layer in self._layers if layer.training]
        if training and not self._world.is_main:
            torch._foreach_zero_(_means_and_variances(training))
        yield
        self._all_reduce(before)

    def _all_reduce(self, before: Tensor) -> None:
        num_new = self._num_batches() - before  # the same on every rank
        tensors = _means_and_variances(self._layers)
        tensors += [getattr(module, name) for module, name in self._others]
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        # `output_size` spares a GPU synchronisation.
        weights = self._weights(before, num_new)
        weights = weights.repeat_interleave(self._sizes, output_size=len(flat))
        flat = torch.where(weights == 0, 0, flat * weights).to(flat.dtype)
        dist.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(
            tensors, [piece.view_as(t) for piece, t in zip(pieces, tensors, strict=True)]
        )
        if self._layers:
            counts = [layer.num_batches_tracked for layer in self._layers]
            torch._foreach_copy_(counts, (before + num_new * self._num_groups).unbind())

    @property
    def _num_groups(self) -> int:
        """The number of groups of ranks that compute micro-batches; in each, one rank counts."""
        return self._world.size // self._part.count

    def _weights(self, before: Tensor, num_new: Tensor) -> Tensor:
        """Compute this rank's weight in the sum for each mean, each variance and the other buffers.

        Without a momentum, a layer keeps the mean over all batches so far. Rank 0's values count
        for layers that have seen no batch.
        """
        num, is_main = self._num_groups, float(self._world.is_main)
        num_later = num - 1 - self._world.rank // self._part.count
        decay = (1 - self._momenta) ** (num_new * num_later)
        mean = (before + num_new) / (before + num_new * num)
        weights = torch.where(self._momenta.isnan(), mean, decay) * float(self._part.index == 0)
        weights = torch.where(num_new > 0, weights, is_main)
        return torch.cat([weights, weights, weights.new_tensor([is_main])])

    def _num_batches(self) -> Tensor:
        """Stack the number of micro-batches that each layer has seen, int64 (layers,)."""
        counts = [layer.num_batches_tracked for layer in self._layers]
        return torch.stack(counts) if counts else self._sizes[:0]


def _has_local_statistics(module: nn.Module) -> bool:
    is_synchronised = isinstance(module, nn.SyncBatchNorm)  # equal on all ranks already
    return isinstance(module, _BatchNorm) and not is_synchronised and module.track_running_stats


def _means_and_variances(layers: Sequence[Any]) -> list[Tensor]:
    return [m.running_mean for m in layers] + [m.running_var for m in layers]


def _other_buffers(model: nn.Module, layers: Sequence[Any]) -> Iterator[tuple[nn.Module, str]]:
    saved = model.state_dict().keys()
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            is_saved = ".".join(filter(None, (path, name))) in saved
            if module not in layers and is_saved and buffer.is_floating_point():
                yield module, name
