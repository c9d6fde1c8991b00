"""A network that is slid over an image, against its fully connected layers as convolutions."""

import pytest
import timm
import torch
from torch import nn
from torchvision import models as torchvision

from orchestrator.evaluation.dense import make_dense


def as_convolutions(network: nn.Module, window: int) -> nn.Module:
    """Return torchvision's network as section 3.2 of VGG's paper describes it."""
    layers: list[nn.Module] = [network.features]
    side = window
    for layer in network.classifier:
        if isinstance(layer, nn.Linear):
            maps = layer.in_features // side**2
            conv = nn.Conv2d(maps, layer.out_features, side)
            conv.weight.data = layer.weight.data.view_as(conv.weight)
            conv.bias.data = layer.bias.data
            side = 1
            layers.append(conv)
        else:
            layers.append(layer)
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(("name", "window", "own"), [("vgg11", 7, 224), ("alexnet", 6, 224)])
@torch.no_grad()
def test_fully_connected_layers_at_every_place(name: str, window: int, own: int) -> None:
    torch.manual_seed(0)
    network = torchvision.get_model(name, weights=None, num_classes=5).eval()
    sliding, convolutions = make_dense(network), as_convolutions(network, window)
    image = torch.randn(2, 3, own, own)
    torch.testing.assert_close(sliding(image), network(image), rtol=1e-4, atol=1e-5)
    larger = torch.randn(1, 3, own + 64, own + 101)
    maps = convolutions(larger)
    assert min(maps.shape[2:]) > 1
    torch.testing.assert_close(sliding(larger), maps.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(sliding(larger), network(larger), rtol=1e-3)


def test_one_that_averages_its_maps_is_taken_as_it_is() -> None:
    for network in (timm.create_model("test_resnet"), torchvision.resnet18()):
        assert make_dense(network) is network


def test_maps_of_a_fixed_size_are_refused() -> None:
    """They would be squeezed, and the figure would not be the protocol's."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d((None, 2)), nn.Flatten())
    with pytest.raises(ValueError, match="its layer 1"):
        make_dense(network)
