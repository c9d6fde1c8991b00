"""Tensors that are sliced over the ranks, by their first dimension, as FSDP2 slices parameters."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from orchestrator.training.distributed.world import World


def local_slice(tensor: DTensor) -> Tensor:
    """Return this rank's slice, which shares its memory."""
    local: Tensor = tensor.to_local()
    return local.detach()


def gather(tensor: DTensor, world: World) -> Tensor:
    """Return the whole tensor on rank 0, and their slice on other ranks; a collective."""
    local = local_slice(tensor)
    if not tensor.placements[0].is_shard(0):
        assert tensor.placements[0].is_replicate(), tensor.placements
        return local
    if not world.is_main:
        if world.rank < num_slices(tensor):
            world.send_to_rank0(local, world.rank)
        return local
    whole = local.new_empty(tensor.shape)
    for rank, piece in enumerate(whole.chunk(world.size)):
        if rank == 0:
            piece.copy_(local)
        else:
            world.send_to_rank0(piece, rank)
    return whole


def scatter(tensor: DTensor, whole: Tensor | None, world: World) -> None:
    """Set the slices on all ranks; a collective.

    Args:
        whole: the tensor on rank 0, on any device; None on other ranks.
    """
    local = local_slice(tensor)
    if whole is None:
        if world.rank < num_slices(tensor):
            world.send_from_rank0(local, world.rank)
        return
    for rank, piece in enumerate(whole.chunk(world.size)):
        if rank == 0:
            local.copy_(piece)
        else:
            sent = piece.to(local.device, local.dtype).contiguous()
            world.send_from_rank0(sent, rank)


class SlicingCopies(TorchFunctionMode):
    """Copies its slice alone where a whole tensor is copied into a sliced one."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is not Tensor.copy_ or not isinstance(args[0], DTensor):
            return func(*args, **(kwargs or {}))
        target, source = args
        if isinstance(source, DTensor):
            return func(*args)
        rank, size = target.device_mesh.get_local_rank(), target.device_mesh.size()
        if rank < num_slices(target):
            local_slice(target).copy_(source.chunk(size)[rank])
        return target


def num_slices(tensor: DTensor) -> int:
    """Count the ranks that have a slice: of three rows, four ranks have one row or none."""
    rows_per_rank = -(-len(tensor) // tensor.device_mesh.size())
    return -(-len(tensor) // rows_per_rank) if rows_per_rank else 0
