"""A level against its formula, place by place; the best neuron against a search."""

import pytest
import torch
from torch.testing import assert_close

from models.historical.cat_2012 import LocalRicaNet, RicaStage, best_neuron


@pytest.mark.parametrize("stride", [1, 2])
def test_a_stage_position_by_position(stride: int) -> None:
    torch.manual_seed(0)
    level = RicaStage(2, 13, 4, 3, stride, 1, sparsity=0.1).double()
    with torch.no_grad():
        level.decoder.normal_(std=0.3)
    x = torch.randn(2, 2, 13, 13, dtype=torch.float64)
    side = (13 - 4) // stride + 1
    rebuilt = torch.zeros_like(x)
    grid = torch.zeros(2, 3, side, side, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            place = row * side + column
            top, left = row * stride, column * stride
            patch = x[:, :, top : top + 4, left : left + 4].flatten(1)
            grid[:, :, row, column] = patch @ level.encoder[place]
            back = grid[:, :, row, column] @ level.decoder[place]
            rebuilt[:, :, top : top + 4, left : left + 4] += back.view(2, 2, 4, 4)
    covered = 4 + (side - 1) * stride
    error = (rebuilt - x)[:, :, :covered, :covered].square().sum((1, 2, 3))
    pools = grid.square().unfold(2, 5, 1).unfold(3, 5, 1).sum((-1, -2))
    pooled = (pools + 1e-6).sqrt()
    cost, seen = level(x)
    assert_close(cost, error + 0.1 * pooled.sum((1, 2, 3)))
    assert seen.shape == (2, 3, level.size, level.size) == pooled.shape
    assert seen.abs().max() < 100  # divided, though by no less than 0.01


def test_a_stage_has_no_gradient_from_the_next() -> None:
    torch.manual_seed(0)
    network = LocalRicaNet(num_classes=0, image_size=32, field=6, maps=2, stages=2)
    images = torch.randn(2, 3, 32, 32)
    network(images).mean().backward()
    together = network.levels[0].encoder.grad.clone()
    network.zero_grad()
    cost, _ = network.levels[0](images)
    cost.mean().backward()
    assert_close(network.levels[0].encoder.grad, together)


def test_the_cost_falls() -> None:
    torch.manual_seed(0)
    network = LocalRicaNet(num_classes=0, image_size=24, field=6, maps=4, stages=1)
    images = torch.rand(16, 3, 24, 24)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    costs = []
    for _ in range(30):
        optimizer.zero_grad()
        cost = network(images).mean()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert costs[-1] < costs[0] / 2


def test_paper_scale_is_a_billion_weights_almost() -> None:
    with torch.device("meta"):
        network = LocalRicaNet(num_classes=0)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(0.75e9, rel=0.02)
    assert network.levels[0].encoder.shape == (183 * 183, 18 * 18 * 3, 8)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match="6x6"):
        LocalRicaNet(num_classes=0, image_size=32)


def test_the_best_neuron() -> None:
    torch.manual_seed(0)
    is_target = torch.arange(400) % 3 == 0
    features = torch.randn(400, 50)
    features[:, 17] += 2 * is_target
    accuracy, neuron = best_neuron(features, is_target)
    assert neuron == 17
    column = features[:, 17]
    low, high = column.min().item(), column.max().item()
    tried = [
        ((column >= low + i / 19 * (high - low)) == is_target).float().mean().item()
        for i in range(20)
    ]
    assert accuracy == pytest.approx(100 * max(tried))
    assert 80 < accuracy < 95
    nothing, _ = best_neuron(torch.zeros(6, 2), torch.tensor([True] * 4 + [False] * 2))
    assert nothing == pytest.approx(100 * 4 / 6)
