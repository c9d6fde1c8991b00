"""The deep autoencoder, pretrained layer by layer, which made depth trainable in 2006.

G. Hinton, R. Salakhutdinov: Reducing the Dimensionality of Data with Neural Networks, Science
313:504, 2006, and the authors' Matlab code for MNIST (rbm.m, rbmhidlinear.m, backprop.m).

    784 - 1000 - 500 - 250 - 30 - 250 - 500 - 1000 - 784

Every unit is logistic but the code's 30, which are linear. Each of the first stages trains one
restricted Boltzmann machine on the activities of the one before, by one step of contrastive
divergence; the last unrolls them, and minimises the cross-entropy of the reconstruction.
2,837,314 parameters. Pixels must be in [0, 1], that is, have the mean 0 and the deviation 1 set.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Autoencoder(nn.Module):
    """`[n, in_channels, s, s]` images, s = `image_size`, to the cost of each, `[n]`.

    `stage` is the number of the machine that is trained; in the last stage all are. The cost in
    training is a function with the gradient of contrastive divergence, or the cross-entropy in
    nats; in evaluation it is the squared error of the stage's reconstruction, summed over its
    units, as the paper reports it. `num_classes` is not used. ValueError: images of another size.
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
            RBM(visible, units, is_code=i == len(hidden) - 1)
            for i, (visible, units) in enumerate(pairwise(sizes))
        )
        # The unrolled network's: the decoder's weights are no longer tied to the encoder's.
        self.decoders = nn.ParameterList(
            machine.weight.detach().T.clone() for machine in self._all()
        )

    def _all(self) -> list["RBM"]:
        return [module for module in self.machines if isinstance(module, RBM)]

    def enter(self, stage: int) -> None:
        """Unroll the machines when the last stage begins: the decoder starts from their weights."""
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
        num_pixels = self._all()[0].weight.shape[1]
        if v.shape[1] != num_pixels:
            raise ValueError(
                f"this autoencoder takes {num_pixels} pixels an image and got {v.shape[1]}. Set "
                "its image_size to that of the images."
            )


class RBM(nn.Module):
    """A restricted Boltzmann machine: `[n, visible]` units in [0, 1], `[n, units]` hidden ones.

    The hidden units are stochastic and binary; those of the code are Gaussian with unit variance.
    """

    def __init__(self, visible: int, units: int, *, is_code: bool) -> None:
        super().__init__()
        self.is_code = is_code
        self.weight = nn.Parameter(0.1 * torch.randn(units, visible))  # rbm.m
        self.hidden_bias = nn.Parameter(torch.zeros(units))
        self.visible_bias = nn.Parameter(torch.zeros(visible))

    def up(self, v: Tensor) -> Tensor:
        """Return the hidden units' means, the input of the next machine."""
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
            reconstructed = self.down(sampled)  # means, not samples, as in rbm.m
        # The gradient of this is <v h> of the data less that of the reconstruction: CD-1.
        return self.free_energy(v) - self.free_energy(reconstructed)

    def free_energy(self, v: Tensor) -> Tensor:
        """Return -log sum_h exp(-E(v, h)) up to a constant, `[n]`."""
        total = F.linear(v, self.weight, self.hidden_bias)
        hidden = total.square().sum(1) / 2 if self.is_code else F.softplus(total).sum(1)
        return -hidden - v @ self.visible_bias
