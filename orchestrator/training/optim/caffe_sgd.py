"""SGD with the learning rate inside the momentum buffer, as the networks of 2012 to 2014 had it.

v <- momentum * v - lr * (gradient + weight_decay * w);  w <- w + v

(Krizhevsky et al. 2012, section 5; Caffe's SGDSolver.) torch.optim.SGD multiplies the whole
velocity by the rate. The two are equal while the rate is constant; after a drop, this velocity
still moves at the old rate for a while.
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
    def step(self) -> None:  # type: ignore[override]  # without a closure
        """Update the parameters that have a gradient."""
        for group, parameter, gradient in decayed_gradients(self):
            state = self.state[parameter]
            if "velocity" not in state:
                state["velocity"] = torch.zeros_like(parameter)
            velocity = state["velocity"].mul_(group["momentum"]).sub_(gradient, alpha=group["lr"])
            parameter.add_(velocity)


def decayed_gradients(
    optimizer: Optimizer,
) -> Iterator[tuple[dict[str, Any], torch.Tensor, torch.Tensor]]:
    """Yield (group, parameter, gradient plus weight decay) of parameters that have a gradient."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield group, parameter, parameter.grad.add(parameter, alpha=group["weight_decay"])
