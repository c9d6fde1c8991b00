"""The ranks of an attempt, and how they agree.

A rank learns who it is from torchrun's environment names, whoever set them. There are two process
groups: the default one carries gradients (NCCL on CUDA, gloo on CPU), and a gloo group on the CPU
carries decisions, so that agreeing waits for no kernel.
"""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Runtime
from orchestrator.training.distributed.network_interface import use_interface

_POLL_S = 0.02


@dataclass(frozen=True)
class World:
    """This rank among all."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """Whether this rank is the one that writes."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks of a CPU tensor; every rank gets the same bits."""
        total = values.clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=self.control)
        return total

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; every rank gets the same answer."""
        return bool(self.sum(torch.tensor([int(flag)])).item())

    def broadcast(self, tensors: Sequence[torch.Tensor], source: int = 0) -> None:
        """Give tensors of one rank, in whatever order of their dimensions, to all."""
        if self.size == 1:
            return
        dense = [tensor.contiguous() for tensor in tensors]
        works = [dist.broadcast(tensor, source, async_op=True) for tensor in dense]
        for work in filter(None, works):
            work.wait()
        for tensor, shared in zip(tensors, dense, strict=True):
            tensor.copy_(shared)  # nothing happens where they are one

    def send_to_rank0(self, tensor: torch.Tensor, source: int) -> None:
        """Let rank 0's tensor become that of another rank; the two alone take part."""
        if source == 0:
            return
        dense = tensor.contiguous()
        if self.is_main:
            dist.recv(dense, source)
            tensor.copy_(dense)
        else:
            dist.send(dense, 0)

    def barrier(self) -> None:
        """Return when every rank has come here."""
        dist.barrier(group=self.control)

    def broadcast_int(self, value: int) -> int:
        """Return rank 0's value on every rank."""
        tensor = torch.tensor([value], dtype=torch.int64)
        dist.broadcast(tensor, src=0, group=self.control)
        return int(tensor.item())

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's object on every rank: small things, that rank 0 has made or checked."""
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self.control)
        return held[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the small objects of all ranks, in their order."""
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.control)
        return gathered


class AsyncMaxReduce:
    """The maximum of a flag over the ranks, one step late and without waiting.

    `step` starts the reduction of this step's flag and returns the result of the one before, so
    every rank acts on the same value at the same step while the network works beside the compute.
    """

    def __init__(self, world: World) -> None:
        self._group = world.control
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._pending: dist.Work | None = None

    def step(self, flag: int) -> int:
        """Offer this rank's flag; return the highest that was offered a step ago."""
        agreed = 0
        if self._pending is not None:
            self._pending.wait()
            agreed = int(self._flag.item())
        self._flag = torch.tensor([flag], dtype=torch.int64)
        self._pending = dist.all_reduce(
            self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return agreed

    def close(self) -> None:
        """Take back the last reduction, so that nothing is in flight when the group ends."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None


@contextmanager
def init_world(runtime: Runtime) -> Iterator[World]:
    """Meet the other ranks; part from them at the end."""
    local_rank = int(os.environ["LOCAL_RANK"])
    device = choose_device(runtime.device, local_rank)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    spans_nodes = (
        os.environ["WORLD_SIZE"] != os.environ["LOCAL_WORLD_SIZE"]
        and os.environ["MASTER_ADDR"] != "127.0.0.1"  # by which only ranks on one machine meet
    )
    use_interface(runtime.network_interface, spans_nodes=spans_nodes)
    timeout = timedelta(seconds=runtime.process_group_timeout_s)
    if device.type == "cuda":
        _choose_repeatable_kernels()
        torch.cuda.set_device(device)
    if os.environ["RANK"] != "0":
        _await_first(runtime.process_group_timeout_s)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    control = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(control, dist.ProcessGroup)  # every rank is a member
    try:
        yield World(
            rank=dist.get_rank(),
            local_rank=local_rank,
            size=dist.get_world_size(),
            device=device,
            control=control,
        )
    finally:
        dist.destroy_process_group()


def _await_first(timeout_s: float) -> None:
    """Return when rank 0 listens. torch, refused once, tries again most of a second later."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:  # after which torch says what is wrong
        try:
            with socket.create_connection(address, timeout=_POLL_S * 100):
                return
        except OSError:
            time.sleep(_POLL_S)


def _choose_repeatable_kernels() -> None:
    """Let CUDA give the same bits for the same step, and torch warn in the log where it cannot.

    Without it float32 convolutions of a resumed ResNet-18 have been seen to differ (H200, cuDNN).
    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS begins
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return the device of a rank: its own GPU, the only one it can see, or the CPU.

    Raises:
        ConfigError: CUDA is asked for and there is no GPU for this rank.
    """
    num_gpus = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if num_gpus == 1:
        return torch.device("cuda", 0)  # Slurm may show each task its own GPU only
    if local_rank < num_gpus:
        return torch.device("cuda", local_rank)
    raise ConfigError(
        f"local rank {local_rank} has no GPU: torch sees {num_gpus}. Ranks would share devices or "
        "have none. Set launcher.nproc_per_node to the number of GPUs, or runtime.device=cpu."
    )
