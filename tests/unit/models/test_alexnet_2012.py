"""AlexNet against towers that are written out, and its norms against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from models.historical.alexnet_2012 import AlexNet, Dropout, MapNorm, TowerNorm


def lrn(a: Tensor) -> Tensor:
    """Section 3.3's formula, map by map, with cuda-convnet's alpha / 5."""
    maps = a.shape[1]
    out = torch.empty_like(a)
    for i in range(maps):
        near = a[:, max(0, i - 2) : i + 3]
        out[:, i] = a[:, i] / (2 + 1e-4 / 5 * near.square().sum(1)) ** 0.75
    return out


def half(layer: nn.Conv2d, tower: int, x: Tensor) -> Tensor:
    """One tower's share of a layer, which sees all of x."""
    number = layer.out_channels // 2
    rows = slice(tower * number, (tower + 1) * number)
    return F.conv2d(x, layer.weight[rows], layer.bias[rows], layer.stride, layer.padding)


@pytest.mark.parametrize("variant", ["printed", "trained"])
@pytest.mark.parametrize("cross_tower", [True, False])
def test_two_towers_written_out(variant: str, *, cross_tower: bool) -> None:
    torch.manual_seed(1)
    network = AlexNet(
        num_classes=5, variant=variant, cross_tower=cross_tower, image_size=96, width=0.1
    ).eval()
    for parameter in network.parameters():  # so that the norms have something to do
        nn.init.normal_(parameter, std=0.3)
    images = 20 * torch.randn(2, 3, 96, 96)
    is_printed = variant == "printed"
    padded = F.pad(images, (0, 3, 0, 3))  # 96 is 11 + 4 * 21 + 1

    towers = [half(network.conv1, t, padded) for t in (0, 1)]
    assert towers[0].shape[-1] == 23
    if is_printed:
        towers = [F.max_pool2d(lrn(F.relu(x)), 3, 2) for x in towers]
    else:
        towers = [F.relu(F.max_pool2d(lrn(x), 3, 2)) for x in towers]
    towers = [lrn(F.relu(half(network.conv2, t, x))) for t, x in enumerate(towers)]
    if not is_printed:
        towers = [
            x / (1 + 1e-3 / 25 * 25 * F.avg_pool2d(x**2, 5, 1, padding=2)) ** 0.75 for x in towers
        ]
    towers = [F.max_pool2d(x, 3, 2) for x in towers]
    both = torch.cat(towers, 1)
    towers = [F.relu(half(network.conv3, t, both if cross_tower else towers[t])) for t in (0, 1)]
    towers = [F.relu(half(network.conv4, t, x)) for t, x in enumerate(towers)]
    towers = [F.relu(F.max_pool2d(half(network.conv5, t, x), 3, 2)) for t, x in enumerate(towers)]
    for layer in (network.fc6, network.fc7):
        both = torch.cat(towers, 1)
        towers = [F.relu(half(layer, t, both if cross_tower else towers[t])) / 2 for t in (0, 1)]
    expected = network.fc8(torch.cat(towers, 1).flatten(1))
    assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_tower_norm_does_not_reach_across() -> None:
    x = torch.zeros(1, 12, 1, 1)
    x[0, 5], x[0, 6] = 1.0, 1000.0  # the last map of one tower, the first of the other
    normed = TowerNorm()(x)
    assert_close(normed[0, 5].item(), 1 / (2 + 2e-5) ** 0.75)
    assert_close(normed, torch.cat([lrn(x[:, :6]), lrn(x[:, 6:])], 1))


def test_map_norm() -> None:
    x = torch.randn(1, 2, 7, 7) * 30
    expected = torch.empty_like(x)
    for row in range(7):
        for column in range(7):
            near = x[:, :, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
            energy = 1e-3 / 25 * near.square().sum((2, 3))
            expected[:, :, row, column] = x[:, :, row, column] / (1 + energy) ** 0.75
    assert_close(MapNorm()(x), expected)


def test_dropout_halves_in_evaluation_and_keeps_in_training() -> None:
    x = torch.ones(10_000)
    assert_close(Dropout().eval()(x), x / 2)
    kept = Dropout()(x)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("variant", "later"), [("printed", 0.01), ("trained", 0.03)])
def test_initialisation(variant: str, later: float) -> None:
    network = AlexNet(num_classes=10, variant=variant, image_size=64, width=0.25)
    layers = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    stds = (0.01, 0.01, later, later, later, 0.01, 0.01, 0.01)
    biases = (0, 1, 0, 1, 1, 1, 1, 0)
    for name, std, bias in zip(layers, stds, biases, strict=True):
        layer = getattr(network, name)
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert set(layer.bias.tolist()) == {bias}
