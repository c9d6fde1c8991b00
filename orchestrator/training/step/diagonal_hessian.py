"""How much the loss curves along each weight, measured where an epoch begins.

LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition, appendix C. What is
measured depends on the weights, the seed and the step alone, and is kept with the optimizer's state
until the next epoch: a run that is resumed inside of one goes on with it.
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
    """Measures for an optimizer that goes by it; nothing is done for others."""

    state: TrainState
    objective: Task
    data: Datasets
    device: Device
    world: World

    def begin(self, step: int) -> None:
        """Prepare the optimizer for a step, counted from 0, if an epoch begins with it.

        Raises:
            ConfigError: the network has an operation whose derivatives are not known.
        """
        optimizer, plan = self.state.optimizer, self.data.plan
        if not isinstance(optimizer, DiagonalLM) or step % plan.steps_per_epoch:
            return
        num_steps = math.ceil(optimizer.num_samples / plan.global_batch_size)
        steps = range(step, min(step + num_steps, plan.num_steps))
        names = MicroBatchKeys(steps, plan.micro_batches_of(self.world.rank))
        weights = optimizer.weights
        sums = [torch.zeros_like(weight) for weight in weights]
        for batch in self.device.prefetch_to_device(
            iter_batches(self.data.train, names, 0, pin_memory=False)
        ):
            found = second_derivatives(
                self.state.network, self.objective, batch.images, batch.labels, weights
            )
            watchdog.heartbeat()
            sums = [total + of_batch for total, of_batch in zip(sums, found, strict=True)]
        num_samples = len(steps) * plan.global_batch_size
        optimizer.set_hessian_diagonal(
            [self.world.sum(total.cpu() / num_samples).to(total) for total in sums]
        )


def second_derivatives(
    network: nn.Module,
    objective: Task,
    images: Tensor,
    labels: Tensor,
    weights: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Return the second derivatives of the loss by weights, each summed over the images.

    Those of the loss itself are as they are; a head without weights, such as radial basis
    functions, belongs to it.
    """
    body, head = _divide(network)
    with SquaredBackprop():
        outputs = body(images)

    def loss(output: Tensor, label: Tensor) -> Tensor:
        return objective.loss(head(output[None]), label[None])

    hessians = vmap(jacrev(grad(loss)))(outputs.detach(), labels)
    return torch.autograd.grad(outputs, weights, hessians.diagonal(dim1=1, dim2=2))


def _divide(network: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return what ends in (n, units), and what makes logits (n, num_classes) of that."""
    head = getattr(network, "head", None)
    body = getattr(network, "forward_features", None)  # as timm calls it
    if body and isinstance(head, nn.Module) and not any(True for _ in head.parameters()):
        return body, head
    return network, lambda logits: logits
