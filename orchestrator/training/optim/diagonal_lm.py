"""Stochastic diagonal Levenberg-Marquardt, the optimizer of LeNet-5.

w <- w - lr / (damping + h) * gradient, where h is the second derivative of the loss by that weight,
measured at the beginning of each epoch: see step.diagonal_hessian.

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
        momentum: 0; other values raise TypeError.
        damping: a constant added to the curvature, which may be 0; the papers' mu.
        num_samples: training images at the beginning of each epoch that the curvature is
            measured on.
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
            raise TypeError(f"momentum={momentum}, but this optimizer has none; set it to 0")
        self.num_samples = num_samples
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "damping": damping})

    @property
    def weights(self) -> list[torch.Tensor]:
        """The optimized parameters, in the order of `set_hessian_diagonal`."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def set_hessian_diagonal(self, diagonal: Sequence[torch.Tensor]) -> None:
        """Set the second derivative by each of the weights."""
        for parameter, curvature in zip(self.weights, diagonal, strict=True):
            self.state[parameter]["curvature"] = curvature

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure
        """Update the parameters that have a gradient."""
        for group, parameter, gradient in decayed_gradients(self):
            damped = self.state[parameter]["curvature"] + group["damping"]
            parameter.addcdiv_(gradient, damped, value=-group["lr"])
