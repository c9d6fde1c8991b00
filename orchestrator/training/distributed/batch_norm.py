"""Batch norm's running statistics: on every rank those of all micro-batches, in their order.

A layer moves them by each micro-batch, s <- (1 - momentum) s + momentum x, and that is linear in s.
So the ranks above the first begin a step at zero and end it with what their own micro-batches add;
each micro-batch of a later rank shrinks that by (1 - momentum), and the sum over the ranks is what
one rank would have come to alone. It is taken each step: what is averaged, evaluated and saved is
then the same on all ranks and does not depend on when that is done.

Other floating-point buffers of a checkpoint are rank 0's after each step: how those of several
ranks would become one, nobody but the network knows.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.training.distributed.world import World


class RunningStatistics:
    """Those of a network, which one rank alone computes without any of this."""

    def __init__(self, network: nn.Module, world: World) -> None:
        self._world = world
        self._layers: Sequence[Any] = [m for m in network.modules() if _has_statistics(m)]
        self._others = list(_other_buffers(network, self._layers))
        momenta = [math.nan if m.momentum is None else m.momentum for m in self._layers]
        self._momenta = torch.tensor(momenta, dtype=torch.float64, device=world.device)
        numbers = [m.num_features for m in self._layers]
        others = sum(getattr(module, name).numel() for module, name in self._others)
        self._sizes = torch.tensor([*numbers, *numbers, others], device=world.device)

    @contextmanager
    def of_all_ranks(self) -> Iterator[None]:
        """Let a step's micro-batches be computed; each rank has the same number of them."""
        if self._world.size == 1 or not (self._layers or self._others):
            yield
            return
        before = self._counts()
        learning = [layer for layer in self._layers if layer.training]
        if learning and not self._world.is_main:
            torch._foreach_zero_(_means_and_variances(learning))
        yield
        self._add_up(before)

    def _add_up(self, before: Tensor) -> None:
        done = self._counts() - before  # by this rank, as by every other
        tensors = _means_and_variances(self._layers)
        tensors += [getattr(module, name) for module, name in self._others]
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        # With its size given, a GPU need not be waited for.
        share = self._share(before, done).repeat_interleave(self._sizes, output_size=len(flat))
        flat = torch.where(share == 0, 0, flat * share).to(flat.dtype)
        dist.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(
            tensors, [piece.view_as(t) for piece, t in zip(pieces, tensors, strict=True)]
        )
        if self._layers:
            counts = [layer.num_batches_tracked for layer in self._layers]
            torch._foreach_copy_(counts, (before + done * self._world.size).unbind())

    def _share(self, before: Tensor, done: Tensor) -> Tensor:
        """Return by what this rank's means, variances and other buffers go into the sum.

        A layer without a momentum takes the mean of all there ever were. One that has seen nothing
        is as rank 0 has it.
        """
        rank, size, is_first = self._world.rank, self._world.size, float(self._world.is_main)
        decayed = (1 - self._momenta) ** (done * (size - 1 - rank))
        of_all = (before + done) / (before + done * size)
        share = torch.where(self._momenta.isnan(), of_all, decayed)
        share = torch.where(done > 0, share, is_first)
        return torch.cat([share, share, share.new_tensor([is_first])])

    def _counts(self) -> Tensor:
        """Return how many micro-batches each layer has seen, int64 (layers,)."""
        counts = [layer.num_batches_tracked for layer in self._layers]
        return torch.stack(counts) if counts else self._sizes[:0]


def _has_statistics(module: nn.Module) -> bool:
    """Whether a module is a batch norm whose statistics are of one rank's micro-batches."""
    is_synchronised = isinstance(module, nn.SyncBatchNorm)  # the same on all ranks by itself
    return isinstance(module, _BatchNorm) and not is_synchronised and module.track_running_stats


def _means_and_variances(layers: Sequence[Any]) -> list[Tensor]:
    return [m.running_mean for m in layers] + [m.running_var for m in layers]


def _other_buffers(network: nn.Module, layers: Sequence[Any]) -> Iterator[tuple[nn.Module, str]]:
    kept = network.state_dict().keys()
    for path, module in network.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            is_kept = ".".join(filter(None, (path, name))) in kept
            if module not in layers and is_kept and buffer.is_floating_point():
                yield module, name
