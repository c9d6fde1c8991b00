"""The paper's ResNet is torchvision's but for the place of the stride."""

import pytest
import torch
import torchvision
from torch.testing import assert_close
from torchvision.models.resnet import Bottleneck

from models.historical.resnet_2015 import resnet


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvisions_with_the_same_weights(depth: int) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(f"resnet{depth}", num_classes=7).eval()
    ours = resnet(num_classes=7, depth=depth).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    if depth == 18:  # of basic blocks, which have one place for a stride
        assert_close(ours(images), theirs(images))
        return
    assert not torch.allclose(ours(images), theirs(images))
    for block in theirs.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    assert_close(ours(images), theirs(images))


def test_one_channel() -> None:
    assert resnet(num_classes=3, in_channels=1, depth=18)(torch.randn(2, 1, 32, 32)).shape == (2, 3)
