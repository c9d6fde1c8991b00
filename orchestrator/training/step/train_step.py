"""The gradients of one step: micro-batches accumulated on a rank, averaged over the ranks.

A micro-batch is the unit of everything that is not linear: batch norm sees one at a time, and noise
(dropout, stochastic depth) is seeded by (seed, step, micro-batch). The number of ranks decides only
how many micro-batches a rank computes.
"""

import inspect
import math
from collections.abc import Iterable
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


def wrap_ddp(model: nn.Module, *, has_unused: bool = False) -> DistributedDataParallel:
    """Wrap a model so that DDP averages gradients; buffers are left to `RunningStatistics`.

    Args:
        has_unused: True if some steps do not use every parameter.
    """
    parameters = inspect.signature(DistributedDataParallel).parameters
    new_name = "forward_sync_buffers"  # torch 2.14 warns of the old one
    no_sync: dict[str, Any] = {new_name if new_name in parameters else "broadcast_buffers": False}
    return DistributedDataParallel(
        model, gradient_as_bucket_view=True, find_unused_parameters=has_unused, **no_sync
    )


class TrainStep:
    """Computes the gradients of a step into `.grad` of the model's parameters."""

    def __init__(
        self,
        ddp: DistributedDataParallel,
        task: Task,
        scaler: torch.amp.GradScaler,
        config: Config,
        plan: Plan,
        device: Device,
        world: World,
    ) -> None:
        self.ddp, self.task, self.scaler = ddp, task, scaler
        self.config, self.plan, self.device = config, plan, device
        self.mixup = MixupCutmix(config.recipe.mixup, plan.num_classes, config.seed)
        self.model = torch.compile(ddp) if config.recipe.compile else ddp
        self.statistics = RunningStatistics(ddp.module, world)
        self.micros = plan.micro_batches_of(world.rank)

    def forward_backward(self, step: int, batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
        """Accumulate this rank's micro-batches; return the means of their metrics, on the device.

        Args:
            step: 0-based.
            batches: an iterator, whose next elements are the micro-batches of this step.
        """
        metrics = []
        with self.statistics.synchronized():
            for micro, batch in zip(self.micros, batches, strict=False):
                images, labels = self.mixup(batch.images, batch.labels, step, micro)
                # DDP decides in the forward pass whether the backward pass communicates.
                with nullcontext() if micro == self.micros[-1] else self.ddp.no_sync():
                    values = self._forward(step, micro, images, labels)
                    self.scaler.scale(values["train/loss"] / len(self.micros)).backward()
                metrics.append({name: value.detach() for name, value in values.items()})
        return {name: torch.stack([m[name] for m in metrics]).mean() for name in metrics[0]}

    def warm_up(self) -> None:
        """Run two throw-away passes that leave the model unchanged.

        DDP regroups its buckets after the first backward pass, and from three ranks up the grouping
        decides the order of additions. Without these passes the first step of an attempt would add
        in another order than the same step of an uninterrupted run.
        """
        buffers = [buffer.clone() for buffer in self.ddp.module.buffers()]
        data = self.config.data
        shape = (self.plan.images_per_pass, data.in_channels, data.image_size, data.image_size)
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
            output = self.model(images)
            loss = self.task.loss(output, labels)
        return {"train/loss": loss, **self.task.train_metrics(output, labels)}


def clip_gradients(model: nn.Module, recipe: Recipe) -> torch.Tensor:
    """Clip a model's gradients in place; return their norm before that."""
    parameters = [*model.parameters()]
    norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_grad_norm or math.inf)
    if recipe.agc_clip_factor:  # not the head's: Brock et al. 2021, section 4.1
        adaptive_clip_grad(parameters[:-2], recipe.agc_clip_factor)  # type: ignore[no-untyped-call]
    return norm
