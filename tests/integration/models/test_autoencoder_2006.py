"""Contrastive divergence against its rule, the stages, the unrolling."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from models.historical.autoencoder_2006 import RBM, Autoencoder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small() -> Autoencoder:
    return Autoencoder(num_classes=0, image_size=6, hidden=(20, 8, 3))


def test_the_papers_size() -> None:
    assert sum(p.numel() for p in Autoencoder(num_classes=0).parameters()) == 2_837_314


@pytest.mark.parametrize("is_code", [False, True])
def test_the_gradient_is_contrastive_divergence(is_code: bool) -> None:
    machine = RBM(12, 5, is_code=is_code)
    v = torch.rand(7, 12)
    torch.manual_seed(1)
    machine(v).mean().backward()

    torch.manual_seed(1)
    w, b, c = machine.weight.detach(), machine.hidden_bias.detach(), machine.visible_bias.detach()

    def up(x: Tensor) -> Tensor:
        total = x @ w.T + b
        return total if is_code else 1 / (1 + (-total).exp())

    h = up(v)
    sampled = h + torch.randn_like(h) if is_code else torch.bernoulli(h)
    dreamt = 1 / (1 + (-(sampled @ w + c)).exp())
    again = up(dreamt)
    # rbm.m: posprods - negprods, which the weights are moved along.
    assert_close(-machine.weight.grad, (h.T @ v - again.T @ dreamt) / 7)
    assert_close(-machine.hidden_bias.grad, (h - again).mean(0))
    assert_close(-machine.visible_bias.grad, (v - dreamt).mean(0))


def test_each_stage_trains_its_own() -> None:
    network = small()
    images = torch.rand(4, 1, 6, 6)
    for stage in range(3):
        network.stage = stage
        network.zero_grad()
        cost = network(images)
        assert cost.shape == (4,)
        cost.mean().backward()
        trained = {name for name, p in network.named_parameters() if p.grad is not None}
        expected = {
            f"machines.{stage}.{part}" for part in ("weight", "hidden_bias", "visible_bias")
        }
        assert trained == expected
    network.stage = 3
    network.zero_grad()
    network(images).mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_unrolling_starts_from_the_weights_of_the_machines() -> None:
    network = small()
    with torch.no_grad():
        for machine in network._all():
            machine.weight.normal_()
        network.enter(2)  # not yet the last
        assert not torch.equal(network.decoders[0], network._all()[0].weight.T)
        network.enter(3)
    network.stage = 3
    network.eval()
    v = torch.rand(5, 36)
    x = v
    for machine in network._all():
        x = machine.up(x)
    assert_close(network.encode(v.view(5, 1, 6, 6)), x)
    for machine in reversed(network._all()):
        x = machine.down(x)
    assert_close(network(v.view(5, 1, 6, 6)), (x - v).square().sum(1))


def test_pretraining_reconstructs_better() -> None:
    network = small()
    prototypes = (torch.rand(4, 36) > 0.5).float()
    images = prototypes[torch.randint(4, (200,))].view(200, 1, 6, 6)

    def error() -> float:
        network.eval()
        value = network(images).mean().item()
        network.train()
        return value

    before = error()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        network(images).mean().backward()
        optimizer.step()
    assert error() < before / 3


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"36 pixels .* 64"):
        small()(torch.rand(2, 1, 8, 8))
