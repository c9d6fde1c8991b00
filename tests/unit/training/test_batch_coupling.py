"""Networks in which images meet outside batch norm are found, and no others."""

from collections.abc import Callable

import pytest
import torch
from timm.layers import EvoNorm2dB0
from torch import Tensor, nn

from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.training.task.batch_coupling import check_images_are_independent


class Centered(nn.Module):
    """A layer as a user writes one, which keeps a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = x.mean(dim=(0, 2, 3))
        return x - self.mean.view(1, -1, 1, 1)


def network(layer: nn.Module) -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 10))
    return nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.SiLU(), *head)


@pytest.mark.parametrize("layer", [lambda: EvoNorm2dB0(4), Centered])
def test_layers_that_compute_with_all_images_are_refused(
    config: Config, layer: Callable[[], nn.Module]
) -> None:
    with pytest.raises(ConfigError) as error:
        check_images_are_independent(network(layer()), config)
    assert error.value.value == config.model.name


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.BatchNorm2d(4),
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        lambda: nn.GroupNorm(2, 4),
    ],
)
def test_other_networks_are_left_as_they_are(
    config: Config, layer: Callable[[], nn.Module]
) -> None:
    checked = network(layer())
    before = {name: value.clone() for name, value in checked.state_dict().items()}
    check_images_are_independent(checked, config)
    assert all(module.training for module in checked.modules())
    assert all(torch.equal(before[name], v) for name, v in checked.state_dict().items())
