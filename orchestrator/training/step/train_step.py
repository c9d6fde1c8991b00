"""The gradients of one step: micro-batches accumulated on a rank, averaged over the ranks.

A micro-batch is the unit of everything that is not linear: batch norm and mixing see one at a time,
and noise (dropout, stochastic depth) is seeded by (seed, step, micro-batch). The number of ranks
decides only how many micro-batches a rank computes, or how many ranks compute a part of one; then
the noise is seeded by the part, too.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch

from data_sharding.loading.loader import Batch
from data_sharding.rng import derive_key
from data_sharding.sampling.sample_order import Part
from orchestrator.config.schema import Config
from orchestrator.run.plan import Plan
from orchestrator.training.distributed.batch_norm import RunningStatistics
from orchestrator.training.distributed.micro_batch_group import MicroBatchGroup
from orchestrator.training.distributed.shared_batch_norm import share_batch_norm
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.device import Device
from orchestrator.training.monitoring.step_timer import StepTimer
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.step.compile import compile_model
from orchestrator.training.step.phases import supports_phases
from orchestrator.training.task.batch_coupling import check_images_are_independent
from orchestrator.training.task.grad_checkpointing import restored_buffers
from orchestrator.training.task.losses import Task
from orchestrator.training.task.mixup import MixupCutmix


class TrainStep:
    """Computes the gradients of a step into `.grad` of the model's parameters."""

    def __init__(
        self,
        state: TrainState,
        task: Task,
        config: Config,
        plan: Plan,
        device: Device,
        world: World,
    ) -> None:
        self.state, self.task = state, task
        self.config, self.plan, self.device = config, plan, device
        timeout_s = config.runtime.process_group_timeout_s
        group = MicroBatchGroup.create(plan, world, timeout_s)
        if group.is_shared:
            with device.autocast():  # FSDP2 may have the weights in its precision only
                check_images_are_independent(state.model, config)
            share_batch_norm(state.model, group)
        self.mixup = MixupCutmix(config.recipe.mixup, plan.num_classes, config.seed, group)
        has_unused = bool(config.recipe.phases) and supports_phases(state.model)
        self.wrapped = state.strategy.wrap(state.model, has_unused=has_unused)
        self.model = compile_model(state.model, self.wrapped, config.recipe.compile)
        self.statistics = RunningStatistics(state.model, world, group.part)
        self.part = group.part
        self.micros = plan.micro_batches_of(world.rank)
        self.timer = StepTimer(world.device)

    def forward_backward(self, step: int, batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
        """Accumulate this rank's micro-batches; return the means of their metrics, on the device.

        Args:
            step: 0-based.
            batches: an iterator, whose next elements are the micro-batches of this step.
        """
        metrics = []
        self.timer.begin_step()
        with self.statistics.synchronized():
            for micro, batch in zip(self.micros, self.timer.wrap(iter(batches)), strict=False):
                images, labels = self.mixup(batch.images, batch.labels, step, micro)
                # DDP decides in the forward pass whether the backward pass communicates.
                is_last = micro == self.micros[-1]
                with nullcontext() if is_last else self._accumulate():
                    values = self._forward(step, micro, images, labels)
                    loss = self.state.scaler.scale(values["train/loss"] / len(self.micros))
                    timed = self.timer.last_backward(loss) if is_last else nullcontext()
                    with timed, self._in_backward():
                        loss.backward()
                metrics.append({name: value.detach() for name, value in values.items()})
        return {name: torch.stack([m[name] for m in metrics]).mean() for name in metrics[0]}

    def warm_up(self) -> None:
        """Run two throw-away passes that leave the model unchanged.

        DDP regroups its buckets after the first backward pass, and from three ranks up the grouping
        decides the order of additions. Without these passes the first step of an attempt would add
        in another order than the same step of an uninterrupted run.
        """
        buffers = [buffer.clone() for buffer in self.state.model.buffers()]
        data = self.config.data
        shape = (self.plan.images_per_pass, data.in_channels, data.image_size, data.image_size)
        images = torch.zeros(shape, device=self.device.device)
        images = images.to(memory_format=self.device.memory_format)
        labels = torch.zeros(len(images), dtype=torch.int64, device=self.device.device)
        for _ in range(2):
            self._forward(0, 0, images, labels)["train/loss"].backward()
        self.wrapped.zero_grad(set_to_none=True)
        for buffer, before in zip(self.state.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _accumulate(self) -> AbstractContextManager[None]:
        return self.state.strategy.accumulate(self.wrapped)

    def _forward(
        self, step: int, micro: int, images: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise_seed(self.config.seed, step, micro, self.part))
        with self.device.autocast():
            output = self.model(images)
            loss = self.task.loss(output, labels)
        return {"train/loss": loss, **self.task.train_metrics(output, labels)}

    def _in_backward(self) -> AbstractContextManager[None]:
        """Keep buffers as the forward pass left them, if the backward pass repeats parts of it."""
        is_repeated = self.config.recipe.grad_checkpointing
        return restored_buffers(self.state.model) if is_repeated else nullcontext()


def noise_seed(seed: int, step: int, micro: int, part: Part) -> int:
    """Derive the seed of the noise in a forward pass, from (seed, step, micro-batch, part)."""
    counters = (step, micro) if part.count == 1 else (step, micro, part.index)
    return int(derive_key(seed, "noise", *counters)[0])
