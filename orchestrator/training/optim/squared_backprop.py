"""A pass backwards in which every derivative is squared, as LeCun propagates second derivatives.

From h_i = d2E/dy_i2 of a layer's outputs follow d2E/dx_j2 = sum over i of w_ij2 h_i for its inputs
and d2E/dw_ij2 = x_j2 h_i for its weights, summed over the places that share one. What lies off a
diagonal is left out, and so is what the second derivative of a layer's function adds (Gauss and
Newton), so that nothing becomes negative.

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

_WITH_BIAS = (torch.conv2d, F.linear)
# Their derivatives are 0 and 1, which are their own squares.
_AS_THEY_ARE = (Tensor.add, Tensor.flatten, Tensor.view, Tensor.__getitem__, Tensor.index_copy)


class SquaredBackprop(TorchFunctionMode):
    """Makes what is computed inside go backwards, later, by the squares of its derivatives.

    Raises:
        ConfigError: an operation whose derivatives are not known here.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        result = func(*args, **options)
        made = result if isinstance(result, tuple | list) else (result,)
        if not any(isinstance(one, Tensor) and one.requires_grad for one in made):
            return result
        if func in _WITH_BIAS:
            x, weight, *rest = args
            bias = rest.pop(0) if rest else options.pop("bias", None)
            product = _Product.apply(lambda x, w: func(x, w, None, *rest, **options), x, weight)
            return product if bias is None else product + _over_places(bias, product)
        if func is Tensor.mul:
            x, factor = args
            return _Product.apply(torch.mul, x, torch.as_tensor(factor, device=x.device))
        if func is torch.tanh:
            return _Tanh.apply(*args)
        is_sum = func is F.avg_pool2d and options.get("divisor_override") == 1
        if func in _AS_THEY_ARE or is_sum:
            return result
        name = getattr(func, "__name__", str(func))
        raise ConfigError(
            f"recipe.optimizer.name=sdlm: this network computes {name}, whose "
            "second derivatives are not known here. It knows what LeNet-5 has: convolutions, "
            "linear layers, products, tanh and subsampling. Take another optimizer."
        )


def _over_places(bias: Tensor, product: Tensor) -> Tensor:
    """Return a bias that adds to (n, channels, ...)."""
    return bias.view(-1, *(1 for _ in product.shape[2:]))


class _Product(torch.autograd.Function):
    """An operation that is linear in each of its two arguments."""

    @staticmethod
    def forward(ctx: Any, operation: Callable[[Tensor, Tensor], Tensor], *pair: Tensor) -> Tensor:
        ctx.operation = operation
        ctx.save_for_backward(*pair)
        return operation(*pair)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        pair = [one.detach().square().requires_grad_() for one in ctx.saved_tensors]
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
        found: Tensor = (1 - y.square()).square() * h
        return found
