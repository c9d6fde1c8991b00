"""The blocks of networks that name them in different ways."""

from collections import Counter

import pytest
import torch
from torch import nn

import models
from models.blocks import find_blocks


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("torchvision/resnet18", {"BasicBlock": 8}),
        ("torchvision/efficientnet_b0", {"MBConv": 16}),  # which list layers inside
        ("torchvision/densenet121", {"_DenseLayer": 58}),  # of dictionaries of modules
        ("torchvision/vit_b_32", {"EncoderBlock": 12}),
        ("timm/test_vit", {"Block": 6}),
        ("timm/convnext_atto", {"ConvNeXtBlock": 12}),  # of stages that are classes of their own
        ("googlenet_2014", {"Inception": 9, "Auxiliary": 2}),  # attributes, in no list
        ("nin_2013", {"Sequential": 4}),
        ("resnet9_2018", {"Residual": 2}),
        ("torchvision/alexnet", {}),
        ("lenet5_1998", {}),
    ],
)
def test_blocks_are_those_of_the_paper(name: str, blocks: dict[str, int]) -> None:
    with torch.device("meta"):
        network = models.build(name, num_classes=10)
    found = find_blocks(network)
    assert Counter(type(block).__name__ for _, block in found) == blocks
    assert all(network.get_submodule(path) is block for path, block in found)
    inside = [module for _, block in found for module in block.modules()]
    assert len(inside) == len({*inside})  # none is part of another


def test_a_layer_is_no_block_whatever_it_is_called() -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU())

    assert not find_blocks(nn.Sequential(normed(), normed(), normed()))
    assert not find_blocks(nn.ModuleList([nn.ModuleList([normed()]), nn.ModuleList([normed()])]))
