"""The diagonal of the loss's Hessian, measured at the beginning of each epoch, for `DiagonalLM`.

LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition, appendix C. The
measurement depends on the weights, the seed and the step alone. It is saved with the optimizer
state, so a run resumed within an epoch continues with it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

from data_sharding.loading.loader import iter_batches
from orchestrator.run.plan import MicroBatchKeys
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.datasets import Datasets
from orchestrator.training.inputs.device import Device
from orchestrator.training.monitoring import watchdog
from orchestrator.training.optim.diagonal_lm import DiagonalLM
from orchestrator.training.optim.squared_backprop import SquaredBackprop
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.task.losses import Task


@dataclass(frozen=True)
class DiagonalHessian:
    """Measures the diagonal for a `DiagonalLM` optimizer; does nothing for others."""

    state: TrainState
    task: Task
    datasets: Datasets
    device: Device
    world: World

    def maybe_update(self, step: int) -> None:
        """Measure if an epoch begins with this (0-based) step.

        Raises:
            ConfigError: the model has an operation whose second derivatives are not known.
        """
        optimizer, plan = self.state.optimizer, self.datasets.plan
        if not isinstance(optimizer, DiagonalLM) or step % plan.steps_per_epoch:
            return
        num_steps = math.ceil(optimizer.num_samples / plan.global_batch_size)
        steps, rank = range(step, min(step + num_steps, plan.num_steps)), self.world.rank
        keys = MicroBatchKeys(steps, plan.micro_batches_of(rank), plan.part_of(rank))
        batches = iter_batches(self.datasets.train, keys, 0, pin_memory=False)
        weights = optimizer.weights
        sums = [torch.zeros_like(weight) for weight in weights]
        for batch in self.device.prefetch_to_device(batches):
            diagonals = diagonal_hessian(
                self.state.model, self.task, batch.images, batch.labels, weights
            )
            watchdog.heartbeat()
            sums = [total + diagonal for total, diagonal in zip(sums, diagonals, strict=True)]
        num_samples = len(steps) * plan.global_batch_size
        optimizer.set_hessian_diagonal(
            [self.world.sum(total.cpu() / num_samples).to(total) for total in sums]
        )


def diagonal_hessian(
    model: nn.Module, task: Task, images: Tensor, labels: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Compute the second derivatives of the loss by the weights, summed over the images.

    The loss is differentiated exactly, and so is a head without weights, such as radial basis
    functions; the layers below by squared backpropagation.
    """
    body, head = _split_head(model)
    with SquaredBackprop():
        outputs = body(images)

    def loss(output: Tensor, label: Tensor) -> Tensor:
        return task.loss(head(output[None]), label[None])

    hessians = vmap(jacrev(grad(loss)))(outputs.detach(), labels)
    return torch.autograd.grad(outputs, weights, hessians.diagonal(dim1=1, dim2=2))


def _split_head(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Split a model into images -> (n, units) and, if its head has no weights, units -> logits."""
    head = getattr(model, "head", None)
    body = getattr(model, "forward_features", None)  # timm's name
    if body and isinstance(head, nn.Module) and not any(True for _ in head.parameters()):
        return body, head
    return model, lambda logits: logits
