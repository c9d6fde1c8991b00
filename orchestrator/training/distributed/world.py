"""The ranks of an attempt and their collectives.

A rank reads torchrun's environment variables, whoever set them. There are two process groups: the
default one carries gradients (NCCL on CUDA, gloo on CPU), and a gloo group on the CPU carries
decisions, so that no decision waits for a kernel.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Runtime
from orchestrator.run.outcome import FatalRunError
from orchestrator.run.rundir import RunError
from orchestrator.training.distributed import agent_store
from orchestrator.training.distributed.network_interface import use_interface

_POLL_S = 0.02
_PATIENCE_S = 30.0  # in which rank 0 may import torch
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """This rank, and collectives over all ranks."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes logs and checkpoints."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a CPU tensor over the ranks; every rank gets the same bits."""
        total = values.clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=self.control)
        return total

    def any(self, flag: bool) -> bool:
        """Check whether the flag is set on any rank; every rank gets the same result."""
        return bool(self.sum(torch.tensor([int(flag)])).item())

    def broadcast(self, tensors: Sequence[torch.Tensor], source: int = 0) -> None:
        """Copy tensors of one rank, in any memory format, to all ranks."""
        if self.size == 1:
            return
        dense = [tensor.contiguous() for tensor in tensors]
        works = [dist.broadcast(tensor, source, async_op=True) for tensor in dense]
        for work in filter(None, works):
            work.wait()
        for tensor, shared in zip(tensors, dense, strict=True):
            tensor.copy_(shared)  # a no-op where they are the same tensor

    def send_to_rank0(self, tensor: torch.Tensor, source: int) -> None:
        """Copy a tensor of another rank to rank 0; only these two take part."""
        if source == 0:
            return
        dense = tensor.contiguous()
        if self.is_main:
            _transfer(dist.irecv, dense, source)
            tensor.copy_(dense)
        else:
            _transfer(dist.isend, dense, 0)

    def send_from_rank0(self, tensor: torch.Tensor, destination: int) -> None:
        """Copy a contiguous tensor of rank 0 to another rank; only these two take part."""
        if self.is_main:
            _transfer(dist.isend, tensor, destination)
        else:
            _transfer(dist.irecv, tensor, 0)

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        dist.barrier(group=self.control)

    def broadcast_object(self, value: Any) -> Any:
        """Copy a small object of rank 0 to every rank."""
        objects = [value]
        dist.broadcast_object_list(objects, src=0, group=self.control)
        return objects[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Collect a small object of every rank, in rank order, on every rank."""
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.control)
        return gathered

    def check_on_main(self, check: Callable[[], None]) -> None:
        """Run a check on rank 0; if it raises `RunError`, every rank raises `FatalRunError`."""
        problem = None
        if self.is_main:
            try:
                check()
            except RunError as error:
                problem = str(error)
        if problem := self.broadcast_object(problem):
            raise FatalRunError(problem)


def _transfer(operation: Callable[..., Any], tensor: torch.Tensor, peer: int) -> None:
    """Send or receive a tensor; as a batch, since NCCL makes a communicator for each pair else."""
    for work in dist.batch_isend_irecv([dist.P2POp(operation, tensor, peer)]):
        work.wait()


class AsyncMaxReduce:
    """The maximum of a flag over the ranks, one step late and without waiting.

    `step` starts to reduce this step's flag and returns the result of the previous step, so every
    rank acts on the same value at the same step, and communication overlaps with compute.
    """

    def __init__(self, world: World) -> None:
        self._group = world.control
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._pending: dist.Work | None = None

    def step(self, flag: int) -> int:
        """Submit this rank's flag; return the maximum over ranks of the previous step."""
        maximum = 0
        if self._pending is not None:
            self._pending.wait()
            maximum = int(self._flag.item())
        self._flag = torch.tensor([flag], dtype=torch.int64)
        self._pending = dist.all_reduce(
            self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return maximum

    def close(self) -> None:
        """Wait for the last reduction: nothing may be in flight when the group is destroyed."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None


@contextmanager
def init_world(runtime: Runtime) -> Iterator[World]:
    """Initialise the process groups; destroy them at the end of the block."""
    local_rank = int(os.environ["LOCAL_RANK"])
    device = choose_device(runtime.device, local_rank)
    torch.set_num_threads(_num_threads(runtime))
    spans_nodes = (
        os.environ["WORLD_SIZE"] != os.environ["LOCAL_WORLD_SIZE"]
        and os.environ["MASTER_ADDR"] != "127.0.0.1"  # reachable on one machine only
    )
    use_interface(runtime.network_interface, spans_nodes=spans_nodes)
    timeout = timedelta(seconds=runtime.process_group_timeout_s)
    if device.type == "cuda":
        _choose_kernels(deterministic=runtime.deterministic)
        torch.cuda.set_device(device)
    _init_process_group("nccl" if device.type == "cuda" else "gloo", timeout)
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


def _init_process_group(backend: str, timeout: timedelta) -> None:
    if agent_store.is_shared():
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = agent_store.open_store(rank, timeout)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=size)
        return
    if os.environ["RANK"] != "0":
        _wait_for_rank0(timeout.total_seconds())
    dist.init_process_group(backend, timeout=timeout)


def _num_threads(runtime: Runtime) -> int:
    """Return a rank's threads: the config's, the launcher's, or an equal part of the cores."""
    from_launcher = int(os.environ.get("OMP_NUM_THREADS", "0"))
    cores = len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"])
    return runtime.threads_per_rank or from_launcher or max(1, cores)


def _wait_for_rank0(timeout_s: float) -> None:
    """Wait until rank 0 listens: a refused torch would retry most of a second later."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    start_s, is_logged = time.monotonic(), False
    while (waited_s := time.monotonic() - start_s) < timeout_s:  # afterwards torch reports it
        try:
            with socket.create_connection((host, port), timeout=_POLL_S * 100):
                return
        except OSError as error:
            if waited_s > _PATIENCE_S and not is_logged:
                log.warning("rank 0 does not answer at %s, port %d: %s", host, port, error)
                is_logged = True
            time.sleep(_POLL_S)


def _choose_kernels(*, deterministic: bool) -> None:
    """Choose CUDA kernels that give the same bits for the same step, or the fastest.

    Torch warns where no deterministic one exists; the fastest are found by trying each.

    Without them, float32 convolutions of a resumed ResNet-18 differed (H200, cuDNN).
    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if not deterministic:
        torch.backends.cudnn.benchmark = True
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow


def choose_device(kind: str, local_rank: int) -> torch.device:
    """Choose a rank's device: its GPU, the only GPU it can see, or the CPU.

    Args:
        kind: "cpu", "cuda" or "auto".
    """
    num_gpus = torch.cuda.device_count()
    if kind == "cpu" or (kind == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if num_gpus == 1:
        return torch.device("cuda", 0)  # Slurm may show each task its own GPU only
    if local_rank < num_gpus:
        return torch.device("cuda", local_rank)
    raise ConfigError(
        f"local rank {local_rank} has no GPU: torch sees {num_gpus}",
        value=local_rank,
        hint="Set launcher.nproc_per_node to the number of GPUs, or runtime.device=cpu.",
    )
