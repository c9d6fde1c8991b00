"""Batch norm over a micro-batch whose rows are on several ranks.

Every batch norm of a model keeps its code and its names, and gets a class of its own in which
`F.batch_norm` in training is computed with the other ranks: torch's own on CUDA, and one here on
the CPU, where torch has none (`nn.SyncBatchNorm` refuses). Ioffe and Szegedy, Batch Normalization,
2015.

The parts' variances are combined by their deviations from the common mean, as in Chan et al.,
Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979: E[x^2] - E[x]^2
would lose digits where the mean is large.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from orchestrator.training.distributed.micro_batch_group import MicroBatchGroup


def share_batch_norm(model: nn.Module, group: MicroBatchGroup) -> None:
    """Make the batch norms of a model see the whole micro-batch that a group of ranks shares.

    So do layers that derive from torch's; `nn.SyncBatchNorm` stays as it is.
    """
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm):
            # A class, and not a method put on the object: copies of the layer must have their own.
            bases, attributes = (_Shared, type(layer)), {"micro_batch_group": group}
            layer.__class__ = type(f"Shared{type(layer).__name__}", bases, attributes)


class _Shared(_BatchNorm):
    micro_batch_group: MicroBatchGroup

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_together(x) if self.training else super().forward(x)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph break at the collective
    def _forward_together(self, x: Tensor) -> Tensor:
        with _TogetherMode(self.micro_batch_group):
            return super().forward(x)


class _TogetherMode(TorchFunctionMode):
    """Computes `F.batch_norm` in training over all parts of a micro-batch."""

    def __init__(self, group: MicroBatchGroup) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Any:
        statistics = running_mean, running_var
        if not training:
            return F.batch_norm(x, *statistics, weight, bias, training, momentum, eps)
        if x.is_cuda:
            group, count = self._group.group, self._group.part.count
            options = eps, momentum, group, count
            return SyncBatchNorm.apply(x, weight, bias, *statistics, *options)
        return _BatchNormTogether.apply(x, weight, bias, *statistics, momentum, eps, self._group)


class _BatchNormTogether(torch.autograd.Function):
    """Batch norm in training on the CPU; x is (n, channels, ...)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        group: MicroBatchGroup,
    ) -> Tensor:
        mean, var, num = _mean_and_variance(x, group)
        if running_mean is not None and running_var is not None:
            unbiased = var * (num / (num - 1))
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * unbiased)
        statistics = [value.to(_accurate(x)) for value in (mean, var)]
        ctx.save_for_backward(x, weight, *statistics)
        ctx.num, ctx.eps, ctx.group = num, eps, group
        return F.batch_norm(x, statistics[0], statistics[1], weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        # With constant mean and variance; the sums are those of this part, as DDP averages them.
        grad_x, sum_dy_xhat, sum_dy = torch.ops.aten.native_batch_norm_backward(
            *(grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True])
        )
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        if needs_x:
            mean_dy_xhat, mean_dy = ctx.group.sum(torch.stack((sum_dy_xhat, sum_dy))) / ctx.num
            scale = (var + ctx.eps).rsqrt()
            shape = (1, -1, *(1 for _ in x.shape[2:]))
            slope = (scale * mean_dy_xhat).view(shape)
            factor = (scale if weight is None else scale * weight).view(shape)
            centered = x.to(mean.dtype) - mean.view(shape)
            grad_x -= centered.mul_(slope).add_(mean_dy.view(shape)).mul_(factor)
        return (
            grad_x if needs_x else None,
            sum_dy_xhat if needs_weight else None,
            sum_dy if needs_bias else None,
            *(None,) * 5,
        )


def _mean_and_variance(x: Tensor, group: MicroBatchGroup) -> tuple[Tensor, Tensor, float]:
    """Compute mean and biased variance of all parts, float64 (channels,), and their count."""
    zeros = x.new_zeros(x.shape[1], dtype=_accurate(x))  # they choose the type of the result
    mean, var = torch.batch_norm_update_stats(x, zeros, zeros.clone(), 0.0)
    num = mean.new_tensor([x.numel() // x.shape[1]], dtype=torch.float64)
    gathered = group.gather(torch.cat([mean.double(), var.double(), num]))
    means, variances, nums = gathered.split([len(mean), len(mean), 1], dim=1)
    shares = nums / nums.sum()
    mean = (shares * means).sum(dim=0)
    var = (shares * (variances + (means - mean).square())).sum(dim=0)
    return mean, var, float(nums.sum())


def _accurate(x: Tensor) -> torch.dtype:
    """Return the type that statistics of a tensor are kept in: not half precision."""
    return torch.promote_types(x.dtype, torch.float32)
