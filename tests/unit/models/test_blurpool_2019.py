import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.testing import assert_close

from models.historical.blurpool_2019 import BlurredConv, resnet_blurpool


def test_maps_are_blurred_before_each_stride_but_the_first() -> None:
    torch.manual_seed(0)
    ours, theirs = (
        resnet_blurpool(num_classes=7, depth=18).eval(),
        torchvision.models.resnet18(num_classes=7).eval(),
    )
    blurred = [name for name, module in ours.named_modules() if isinstance(module, BlurredConv)]
    strided = [
        name
        for name, module in theirs.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and name != "conv1"
    ]
    assert blurred == strided
    assert len(blurred) == 6
    weights = {
        name.replace(".conv.weight", ".weight"): value
        for name, value in ours.state_dict().items()
        if not name.endswith("window")
    }
    theirs.load_state_dict(weights)  # the same, by the same names
    images = torch.randn(2, 3, 64, 64)
    assert not torch.allclose(ours(images), theirs(images))

    x = torch.randn(1, 64, 9, 9)
    block = ours.layer2[0].conv1
    window = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    padded = F.pad(x, (1, 1, 1, 1))
    by_hand = sum(
        window[i, j] * padded[:, :, i : i + 9, j : j + 9] for i in range(3) for j in range(3)
    )
    assert_close(block(x), block.conv(by_hand), rtol=1e-4, atol=1e-4)


def test_no_such_depth() -> None:
    with pytest.raises(ValueError, match="resnet51"):
        resnet_blurpool(num_classes=7, depth=51)
