"""Stochastic diagonal Levenberg-Marquardt, by which LeNet-5 was trained.

w <- w - lr / (damping + h) * gradient, where h is the second derivative of the loss by that weight,
measured at the beginning of each pass through the data: see step.diagonal_hessian.

LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition,
appendix C; LeCun, Bottou, Orr, Mueller 1998, Efficient BackProp, section 9.1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from orchestrator.training.optim.caffe_sgd import decayed_gradients


class DiagonalLM(Optimizer):
    """Stochastic gradient descent with a rate for each weight, small where the loss curves much.

    Args:
        damping: what is added to the curvature, which may be nothing; the papers' mu.
        num_samples: training images on which the curvature is measured, of each epoch the first.

    Raises:
        TypeError: there is a momentum.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float,
        weight_decay: float,
        damping: float,
        num_samples: int,
    ) -> None:
        if momentum:
            raise TypeError(f"it has no momentum, and momentum={momentum} is given. Set it to 0")
        self.num_samples = num_samples
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "damping": damping})

    @property
    def weights(self) -> list[torch.Tensor]:
        """What is optimized, in the order of `set_hessian_diagonal`."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def set_hessian_diagonal(self, curvature: Sequence[torch.Tensor]) -> None:
        """Take the second derivative by each of the weights."""
        for parameter, found in zip(self.weights, curvature, strict=True):
            self.state[parameter]["curvature"] = found

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: nothing here has one
        """Move the parameters that have a gradient."""
        for group, parameter, change in decayed_gradients(self):
            damped = self.state[parameter]["curvature"] + group["damping"]
            parameter.addcdiv_(change, damped, value=-group["lr"])
