"""Momentum as the networks of 2012 to 2014 had it: the learning rate is inside of the velocity.

v <- momentum * v - lr * (gradient + weight_decay * w);  w <- w + v

(Krizhevsky et al. 2012, section 5; Caffe's SGDSolver.) torch.optim.SGD multiplies the whole
velocity by the rate. While the rate stays they are one; when it drops, this velocity still moves
at the old rate for a while.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.optimizer import Optimizer


class CaffeSGD(Optimizer):
    """Stochastic gradient descent with a velocity that includes the learning rate."""

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: nothing here has one
        """Move the parameters that have a gradient."""
        for group, parameter, change in decayed_gradients(self):
            slots = self.state[parameter]
            if "velocity" not in slots:
                slots["velocity"] = torch.zeros_like(parameter)
            velocity = slots["velocity"].mul_(group["momentum"]).sub_(change, alpha=group["lr"])
            parameter.add_(velocity)


def decayed_gradients(
    optimizer: Optimizer,
) -> Iterator[tuple[dict[str, Any], torch.Tensor, torch.Tensor]]:
    """Yield the group, parameter and gradient, weight decay in it, of all that have a gradient."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield group, parameter, parameter.grad.add(parameter, alpha=group["weight_decay"])
