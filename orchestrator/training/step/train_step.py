"""One step's gradients: micro-batches accumulated on a rank, averaged over ranks.

A micro-batch is the unit of everything that does not add up linearly: batch norm sees one at a
time, and its noise (dropout, stochastic depth) is seeded by (seed, step, micro-batch). How many of
them a rank computes is all that the world size decides.
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from timm.utils import adaptive_clip_grad
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data_sharding.loading.loader import Batch
from data_sharding.rng import derive_key
from orchestrator.config.recipe import Recipe
from orchestrator.config.schema import Config
from orchestrator.run.plan import Plan
from orchestrator.training.distributed.batch_norm import RunningStatistics
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.device import Device
from orchestrator.training.task.losses import Task
from orchestrator.training.task.mixup import MixupCutmix


def wrap_ddp(network: nn.Module, *, in_stages: bool = False) -> DistributedDataParallel:
    """Let DDP average the gradients, and leave the buffers alone: see running_statistics.

    Args:
        in_stages: not every step uses every parameter.
    """
    options = inspect.signature(DistributedDataParallel).parameters
    new_name = "forward_sync_buffers"  # torch 2.14 warns of the old one
    no_sync: dict[str, Any] = {new_name if new_name in options else "broadcast_buffers": False}
    return DistributedDataParallel(
        network, gradient_as_bucket_view=True, find_unused_parameters=in_stages, **no_sync
    )


class TrainStep:
    """Computes the gradients of a step into `.grad` of the model's parameters."""

    def __init__(
        self,
        ddp: DistributedDataParallel,
        objective: Task,
        scaler: torch.amp.GradScaler,
        config: Config,
        plan: Plan,
        device: Device,
        world: World,
    ) -> None:
        self.ddp, self.objective, self.scaler = ddp, objective, scaler
        self.config, self.plan, self.device = config, plan, device
        self.mixing = MixupCutmix(config.recipe.mixup, plan.num_classes, config.seed)
        self.network = torch.compile(ddp) if config.recipe.compile else ddp
        self.statistics = RunningStatistics(ddp.module, world)

    def forward_backward(
        self, step: int, micros: range, batches: Iterator[Batch]
    ) -> dict[str, torch.Tensor]:
        """Accumulate this rank's micro-batches; return means of their figures, on the device."""
        with self.statistics.of_all_ranks():
            return self._accumulate(step, micros, batches)

    def _accumulate(
        self, step: int, micros: range, batches: Iterator[Batch]
    ) -> dict[str, torch.Tensor]:
        found = []
        for micro, batch in zip(micros, batches, strict=False):
            # DDP decides in the forward pass whether the backward pass is to communicate.
            with nullcontext() if micro == micros[-1] else self.ddp.no_sync():
                images, labels = self.mixing(batch.images, batch.labels, step, micro)
                figures = self._forward(step, micro, images, labels)
                self.scaler.scale(figures["train/loss"] / len(micros)).backward()
            found.append({name: figure.detach() for name, figure in figures.items()})
        return {name: torch.stack([one[name] for one in found]).mean() for name in found[0]}

    def warm_up(self) -> None:
        """Run throw-away passes, and leave the model as it was.

        After its first backward DDP regroups its buckets, and from three ranks up the grouping
        decides the order of additions. Without these passes the first step of every attempt would
        add up differently from the same step of an uninterrupted run.
        """
        buffers = [buffer.clone() for buffer in self.ddp.module.buffers()]
        data = self.config.data
        shape = (self.plan.micro_batch_size, data.in_channels, data.image_size, data.image_size)
        images = torch.zeros(shape, device=self.device.device)
        images = images.to(memory_format=self.device.memory_format)
        labels = torch.zeros(len(images), dtype=torch.int64, device=self.device.device)
        for _ in range(2):
            self._forward(0, 0, images, labels)["train/loss"].backward()
        self.ddp.zero_grad(set_to_none=True)
        for buffer, before in zip(self.ddp.module.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _forward(
        self, step: int, micro: int, images: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        torch.manual_seed(int(derive_key(self.config.seed, "noise", step, micro)[0]))
        with self.device.autocast():
            output = self.network(images)
            figures = {"train/loss": self.objective.loss(output, labels)}
        return figures | self.objective.train_metrics(output, labels)


def clip_gradients(network: nn.Module, recipe: Recipe) -> torch.Tensor:
    """Shorten a network's gradients as the recipe says; return their norm before that."""
    parameters = [*network.parameters()]
    norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_grad_norm or math.inf)
    if recipe.agc_clip_factor:  # but those of the head: Brock et al. 2021, section 4.1
        adaptive_clip_grad(parameters[:-2], recipe.agc_clip_factor)  # type: ignore[no-untyped-call]
    return norm
