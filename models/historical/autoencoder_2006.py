"""The deep autoencoder, pretrained layer by layer: what made depth trainable in 2006.

G. Hinton, R. Salakhutdinov: Reducing the Dimensionality of Data with Neural Networks, Science
313:504, 2006, and the authors' Matlab code for MNIST (rbm.m, rbmhidlinear.m, backprop.m).

    784 - 1000 - 500 - 250 - 30 - 250 - 500 - 1000 - 784

Every unit is logistic but the code's 30, which are linear. Each of the first stages trains one
restricted Boltzmann machine on the activities of the one before, by one step of contrastive
divergence; the last unrolls them, and minimises the cross-entropy of the reconstruction.
2,837,314 parameters. Pixels are to be in [0, 1]: data.mean=[0.0], data.std=[1.0].
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """`[n, in_channels, s, s]` images, s = `image_size`, to the cost of each, `[n]`.

    `stage` says what is trained: machine 0, 1, ..., and then all. The cost in training is what has
    the gradient of contrastive divergence, or the cross-entropy in nats; in evaluation it is the
    squared error of what the stage reconstructs, summed over its units, as the paper reports it.
    `num_classes` plays no part. ValueError: images of another size.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        image_size: int = 28,
        hidden: Sequence[int] = (1000, 500, 250, 30),
    ) -> None:
        super().__init__()
        self.stage = 0
        sizes = (in_channels * image_size**2, *hidden)
        self.machines = nn.ModuleList(
            RBM(seen, units, is_code=i == len(hidden) - 1)
            for i, (seen, units) in enumerate(pairwise(sizes))
        )
        # Of the unrolled network: the decoder's weights part from the encoder's.
        self.decoders = nn.ParameterList(
            machine.weight.detach().T.clone() for machine in self._all()
        )

    def _all(self) -> list["RBM"]:
        return [module for module in self.machines if isinstance(module, RBM)]

    def enter(self, stage: int) -> None:
        """Unroll the machines when the last stage begins: the decoder starts as they end."""
        if stage == len(self.machines):
            for decoder, machine in zip(self.decoders, self._all(), strict=True):
                decoder.copy_(machine.weight.T)

    def forward(self, images: Tensor) -> Tensor:
        v = images.flatten(1)  # [n, 784]
        self._check(v)
        if self.stage >= len(self.machines):
            return self._reconstruction(v)
        with torch.no_grad():
            for machine in self._all()[: self.stage]:
                v = machine.up(v)
        cost: Tensor = self._all()[self.stage](v)
        return cost

    def encode(self, images: Tensor) -> Tensor:
        """Return the codes of images, `[n, 30]`."""
        x = images.flatten(1)
        for machine in self._all():
            x = machine.up(x)
        return x

    def _reconstruction(self, v: Tensor) -> Tensor:
        x = self.encode(v)
        pairs = list(zip(self.decoders, self._all(), strict=True))[::-1]
        for decoder, machine in pairs[:-1]:
            x = torch.sigmoid(F.linear(x, decoder, machine.visible_bias))
        logits = F.linear(x, pairs[-1][0], pairs[-1][1].visible_bias)  # [n, 784]
        if self.training:
            return F.binary_cross_entropy_with_logits(logits, v, reduction="none").sum(1)
        return (torch.sigmoid(logits) - v).square().sum(1)

    def _check(self, v: Tensor) -> None:
        seen = self._all()[0].weight.shape[1]
        if v.shape[1] != seen:
            raise ValueError(
                f"This autoencoder sees {seen} pixels an image and got {v.shape[1]}. Set "
                "data.image_size and model.kwargs.image_size alike."
            )


class RBM(nn.Module):
    """A restricted Boltzmann machine: `[n, seen]` visible units in [0, 1], `[n, units]` hidden.

    The hidden units are stochastic and binary; those of the code are Gaussian with unit variance.
    """

    def __init__(self, seen: int, units: int, *, is_code: bool) -> None:
        super().__init__()
        self.is_code = is_code
        self.weight = nn.Parameter(0.1 * torch.randn(units, seen))  # rbm.m
        self.hidden_bias = nn.Parameter(torch.zeros(units))
        self.visible_bias = nn.Parameter(torch.zeros(seen))

    def up(self, v: Tensor) -> Tensor:
        """Return the hidden units' means, which are what the next machine sees."""
        total = F.linear(v, self.weight, self.hidden_bias)
        return total if self.is_code else torch.sigmoid(total)

    def down(self, h: Tensor) -> Tensor:
        """Return the visible units' means."""
        return torch.sigmoid(F.linear(h, self.weight.T, self.visible_bias))

    def forward(self, v: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.up(v)
            if not self.training:
                return (self.down(h) - v).square().sum(1)
            sampled = h + torch.randn_like(h) if self.is_code else torch.bernoulli(h)
            dreamt = self.down(sampled)  # means, not samples, as in rbm.m
        # The gradient of this is <v h> of the data less that of the dream: CD-1.
        return self.free_energy(v) - self.free_energy(dreamt)

    def free_energy(self, v: Tensor) -> Tensor:
        """Return -log sum_h exp(-E(v, h)) up to a constant, `[n]`."""
        total = F.linear(v, self.weight, self.hidden_bias)
        hidden = total.square().sum(1) / 2 if self.is_code else F.softplus(total).sum(1)
        return -hidden - v @ self.visible_bias
