"""Backpropagation with squared derivatives: LeCun's diagonal second derivatives.

From h_i = d2E/dy_i2 of a layer's outputs follow d2E/dx_j2 = sum over i of w_ij2 h_i for its inputs
and d2E/dw_ij2 = x_j2 h_i for its weights, summed over the positions that share one. Off-diagonal
terms are dropped, and so are second derivatives of the layer's function (Gauss-Newton), so that
nothing becomes negative.

LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition, appendix C; LeCun,
Bottou, Orr, Mueller 1998, Efficient BackProp, section 7.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from orchestrator.config.parse import ConfigError

_LAYERS = (torch.conv2d, F.linear)
# Their derivatives are 0 and 1, their own squares.
_UNCHANGED = (Tensor.add, Tensor.flatten, Tensor.view, Tensor.__getitem__, Tensor.index_copy)


class SquaredBackprop(TorchFunctionMode):
    """Gives what is computed inside a backward pass with squared derivatives.

    Raises:
        ConfigError: for an operation without a rule here.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        result = func(*args, **options)
        outputs = result if isinstance(result, tuple | list) else (result,)
        if not any(isinstance(output, Tensor) and output.requires_grad for output in outputs):
            return result
        if func in _LAYERS:
            x, weight, *rest = args
            bias = rest.pop(0) if rest else options.pop("bias", None)
            product = _Product.apply(lambda x, w: func(x, w, None, *rest, **options), x, weight)
            return product if bias is None else product + _broadcast_bias(bias, product)
        if func is Tensor.mul:
            x, factor = args
            return _Product.apply(torch.mul, x, torch.as_tensor(factor, device=x.device))
        if func is torch.tanh:
            return _Tanh.apply(*args)
        is_sum = func is F.avg_pool2d and options.get("divisor_override") == 1
        if func in _UNCHANGED or is_sum:
            return result
        name = getattr(func, "__name__", str(func))
        raise ConfigError(
            f"recipe.optimizer.name=sdlm has no second derivatives of {name}, which this model "
            "computes",
            value=name,
            hint="Take another optimizer: sdlm knows the operations of LeNet-5 only "
            "(convolutions, linear layers, products, tanh, subsampling).",
        )


def _broadcast_bias(bias: Tensor, product: Tensor) -> Tensor:
    """Reshape a bias so that it can be added to (n, channels, ...)."""
    return bias.view(-1, *(1 for _ in product.shape[2:]))


class _Product(torch.autograd.Function):
    """A function linear in each of its two arguments."""

    @staticmethod
    def forward(ctx: Any, operation: Callable[[Tensor, Tensor], Tensor], *pair: Tensor) -> Tensor:
        ctx.operation = operation
        ctx.save_for_backward(*pair)
        return operation(*pair)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        pair = [factor.detach().square().requires_grad_() for factor in ctx.saved_tensors]
        with torch.enable_grad():
            product = ctx.operation(*pair)
        return None, *torch.autograd.grad(product, pair, h)


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        h_input: Tensor = (1 - y.square()).square() * h
        return h_input
