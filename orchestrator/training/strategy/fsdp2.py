"""FSDP2: weights, gradients, EMA and optimizer state are sharded over the ranks.

Each rank keeps a slice of every parameter, by its first dimension. A block's parameters are
gathered before its forward and its backward pass, and freed after each. Every backward pass
averages the gradients and slices them, also those of micro-batches that are accumulated: to send
the sum alone, a rank would keep the gradients of the whole model. Buffers are whole on every rank.

Autocast decides in which precision a layer computes, as everywhere. In bf16 and fp16 the matrices
of blocks are gathered in that precision, or autograd would keep a cast copy of each until the
backward pass, and so are vectors beside them (the scales of ConvNeXt's blocks). Layers of vectors
alone (norms), and what is outside of the blocks, are gathered in float32.

In a checkpoint weights and optimizer state are whole. They pass through rank 0 one tensor at a
time, so a device needs memory for its slices, and rank 0's for one whole tensor besides. The host
of rank 0 keeps a copy of the whole state while it is written (`HostSnapshot`).

Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel".
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from models.blocks import find_blocks
from orchestrator.config.recipe import Recipe
from orchestrator.training.distributed.world import World
from orchestrator.training.strategy.fsdp_checks import check_model, check_optimizer
from orchestrator.training.strategy.fsdp_groups import clone_views, vectors_of
from orchestrator.training.strategy.param_state import ParamState
from orchestrator.training.strategy.slices import SlicingCopies, gather, local_slice, scatter
from orchestrator.training.strategy.strategy import Strategy

_AGC_EPS = 1e-3  # the least norm of weights: Brock et al. 2021, section 4.1


class Fsdp2(Strategy):
    """A slice of each parameter, of its gradient and its optimizer state on each rank.

    Args:
        dtype: the precision of autocast.
    """

    forward_is_collective = True

    def __init__(self, world: World, dtype: torch.dtype) -> None:
        super().__init__(world)
        self._dtype = dtype
        self._params: list[nn.Parameter] = []

    # ------------------------------------------------------------ the model

    def place(self, model: nn.Module, *, with_copy: bool) -> tuple[nn.Module, nn.Module | None]:
        """Shard a model that is on the CPU; one block of it is whole on the device at a time."""
        check_model(model)
        model.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other
        twin = _without_weights(model) if with_copy else None
        mesh = init_device_mesh(self.world.device.type, (self.world.size,))
        self._shard(model, mesh)
        if twin is not None:
            self._shard(twin, mesh)
            twin._apply(self._allocate)
            for average, weight in zip(twin.parameters(), model.parameters(), strict=True):
                self.local(average).copy_(self.local(weight))
        return model, twin

    def wrap(self, model: nn.Module, *, has_unused: bool = False) -> nn.Module:
        return model

    def local(self, tensor: Tensor) -> Tensor:
        return local_slice(tensor) if isinstance(tensor, DTensor) else tensor

    def accepting_whole_tensors(self) -> AbstractContextManager[None]:
        return SlicingCopies()

    def _shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Shard the blocks, each a group, then the rest of the model."""
        # Not even the root keeps its parameters: evaluation has no backward pass to free them.
        common: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True}
        matrices = MixedPrecisionPolicy()
        if self._dtype != torch.float32:
            matrices = MixedPrecisionPolicy(self._dtype, torch.float32, cast_forward_inputs=False)
        for _, block in find_blocks(model):
            vectors = vectors_of(block) if matrices.param_dtype else []
            for module in (*vectors, block):
                module.register_forward_hook(clone_views)
            if vectors:
                fully_shard(vectors, **common)
            fully_shard(block, mp_policy=matrices, **common)
        model.register_forward_hook(clone_views)
        fully_shard(model, **common)

    def _allocate(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=self.world.device) if tensor.is_meta else tensor

    # ------------------------------------------------------------ gradients

    def accumulate(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def clip_gradients(self, model: nn.Module, recipe: Recipe) -> Tensor:
        parameters = [*model.parameters()]
        slices = [self.local(p.grad) for p in parameters if p.grad is not None]
        square = nn.utils.get_total_norm(slices).square()
        dist.all_reduce(square)
        norm = square.sqrt()
        nn.utils.clip_grads_with_norm_(parameters, recipe.clip_grad_norm or math.inf, norm)
        if recipe.agc_clip_factor:
            self._clip_adaptively(parameters[:-2], recipe.agc_clip_factor)
        return norm

    def _clip_adaptively(self, parameters: Sequence[nn.Parameter], factor: float) -> None:
        """Clip rows of matrices and kernels, and whole vectors, as timm's `adaptive_clip_grad`."""
        for parameter in parameters:
            if parameter.grad is None:
                continue
            weight, grad = (_rows(self.local(tensor)) for tensor in (parameter, parameter.grad))
            squares = torch.stack([rows.square().flatten(1).sum(1) for rows in (weight, grad)])
            if parameter.dim() == 1:
                squares = squares.sum(1, keepdim=True)
                dist.all_reduce(squares)
            norm, grad_norm = squares.sqrt()
            limit = norm.clamp(min=_AGC_EPS) * factor
            scale = torch.where(grad_norm > limit, limit / grad_norm, 1.0)
            grad.mul_(scale.view(-1, *(1,) * (grad.dim() - 1)))

    # ------------------------------------------------------------ optimizer state

    def attach(self, optimizer: Optimizer) -> None:
        check_optimizer(optimizer)
        self._params = [param for group in optimizer.param_groups for param in group["params"]]

    # ------------------------------------------------------------ checkpoints

    def gather(self, tensor: Tensor) -> Tensor:
        return gather(tensor, self.world) if isinstance(tensor, DTensor) else tensor

    def scatter(self, tensor: Tensor, whole: Tensor | None) -> None:
        if isinstance(tensor, DTensor):
            scatter(tensor, whole, self.world)
            return
        if whole is not None:
            tensor.copy_(whole)
        self.world.broadcast([tensor])

    def gather_optimizer_state(self, optimizer: Optimizer) -> Iterator[tuple[int, ParamState]]:
        for index, state in optimizer.state_dict()["state"].items():
            yield index, {name: self._gather_value(value) for name, value in state.items()}

    def scatter_param_state(
        self, index: int, meta: ParamState, whole: ParamState | None
    ) -> ParamState | None:
        param, kept = self._params[index], dict(meta)
        for name, value in meta.items():
            if isinstance(value, Tensor) and value.is_meta:  # of the parameter's shape
                kept[name] = torch.empty_like(param, dtype=value.dtype, requires_grad=False)
                self.scatter(kept[name], None if whole is None else whole[name])
        return kept

    def _gather_value(self, value: object) -> object:
        return self.gather(value) if isinstance(value, Tensor) else value


def _rows(tensor: Tensor) -> Tensor:
    """View a vector as a column."""
    return tensor[:, None] if tensor.dim() == 1 else tensor


def _without_weights(model: nn.Module) -> nn.Module:
    """Copy a model but for its weights, which are on the meta device and take no memory."""
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, memo)
