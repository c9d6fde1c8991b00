import torch
from torch.testing import assert_close

from models.historical.zfnet_2013 import ZFNet


def test_filters_that_are_too_large_shrink_to_a_tenth() -> None:
    torch.manual_seed(0)
    network = ZFNet(num_classes=3, image_size=64, width=0.1)
    small, large = network.conv1.weight[0].clone(), network.conv1.weight[1].clone()
    with torch.no_grad():
        network.conv1.weight[1] *= 100
    before = network.fc6.weight.clone()
    network.after_step()
    assert_close(network.conv1.weight[0], small)
    assert_close(network.conv1.weight[1].square().mean().sqrt().item(), 0.1)
    assert_close(network.conv1.weight[1] / network.conv1.weight[1].norm(), large / large.norm())
    assert torch.equal(network.fc6.weight, before)
