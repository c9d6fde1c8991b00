"""Hooks that compress gradients on their way between ranks: torch's bf16 and PowerSGD.

bf16 rounds each gradient and adds in bf16; it remembers nothing. PowerSGD sends a matrix as a
product of two thin ones, found by one step of power iteration from the last ones, and adds what it
could not send to the next gradient. Vectors, and matrices that would not shrink by half, are sent
whole. What it remembers takes as much memory as the gradients, and is empty after a resume.

Vogels et al. 2019, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
Optimization". https://docs.pytorch.org/docs/stable/ddp_comm_hooks.html
"""

import logging

import torch
import torch.distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from orchestrator.config.parse import ConfigError
from orchestrator.config.strategy import Strategy

NUM_WARM_UP_PASSES = 2  # after which DDP's buckets stay as they are: PowerSGD remembers by bucket
_EPSILON = 1e-8  # added to norms, or a layer without gradient would become NaN
log = logging.getLogger(__name__)


class PowerSgd:
    """Averages the gradients of a DDP model by PowerSGD, from a step on.

    Its first passes are `NUM_WARM_UP_PASSES`, whose gradients are sent whole.

    Raises:
        ConfigError: the model is on the CPU of a machine with a GPU.
    """

    def __init__(self, wrapped: DistributedDataParallel, config: Strategy) -> None:
        device = next(wrapped.parameters()).device
        if device.type == "cpu" and torch.cuda.is_available():
            raise ConfigError(
                "runtime.device=cpu: where there is a GPU, torch's PowerSGD waits for it, and "
                "fails with gradients on the CPU",
                value="cpu",
                hint="Set runtime.device=cuda, or strategy.comm_hook=null or bf16_compress.",
            )
        self._state = PowerSGDState(
            None,
            matrix_approximation_rank=config.matrix_approximation_rank,
            start_powerSGD_iter=config.start_powersgd_step + NUM_WARM_UP_PASSES,
            orthogonalization_epsilon=_EPSILON,
        )
        wrapped.register_comm_hook(self._state, _in_turn)
        if dist.get_rank() == 0:
            log.info("PowerSGD remembers no step before this start: exact=false")

    def prepare_step(self, step: int) -> None:
        """Set the step (0-based) of the next backward pass."""
        self._state.iter = step + NUM_WARM_UP_PASSES


def compress_to_bf16(wrapped: DistributedDataParallel) -> None:
    """Send the gradients of a DDP model in bf16."""
    wrapped.register_comm_hook(wrapped.process_group, _bf16)


def _bf16(group: dist.ProcessGroup, bucket: GradBucket) -> Future[torch.Tensor]:
    """Call torch's hook, which DDP refuses by its name where torch has no CUDA; gloo adds bf16."""
    return bf16_compress_hook(group, bucket)


def _in_turn(state: PowerSGDState, bucket: GradBucket) -> Future[torch.Tensor]:
    """Call torch's hook; on the CPU, wait for it before the next bucket.

    It sends a second and a third message when the first has arrived. gloo would do so in its own
    threads, in another order on each rank, until all of them wait. NCCL's messages are queued at
    once, so there is nothing to wait for.
    """
    future = powerSGD_hook(state, bucket)
    if bucket.buffer().device.type == "cpu":
        future.wait()
    return future
