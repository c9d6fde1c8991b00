"""Only the head learns, and norms stay as they were; in copies too."""

import copy

import pytest
import timm
import torch
from torch import nn

import models
from orchestrator.config.parse import ConfigError
from orchestrator.training.task.linear_probe import freeze_backbone


@pytest.mark.parametrize(
    ("network", "head"),
    [
        (lambda: timm.create_model("resnet18", num_classes=5), "fc"),
        (lambda: timm.create_model("test_vit", num_classes=5), "head"),
        (lambda: models.build("lenet5_1998", num_classes=5), "head"),
        (lambda: models.build("torchvision/mobilenet_v2", num_classes=5), "classifier.1"),
    ],
)
def test_only_the_head_learns(network, head):
    plain = network()
    freeze_backbone(plain, 5)
    learning = {name for name, p in plain.named_parameters() if p.requires_grad}
    assert learning == {f"{head}.weight", f"{head}.bias"}
    for one in (plain, copy.deepcopy(plain)):
        for mode in (True, False, True):
            one.train(mode)
            modes = {name: module.training for name, module in one.named_modules()}
            assert {name for name, training in modes.items() if training} == (
                {head} if mode else set()
            )


def test_statistics_do_not_move():
    plain = timm.create_model("resnet18", num_classes=5)
    freeze_backbone(plain, 5)
    before = {name: buffer.clone() for name, buffer in plain.named_buffers()}
    plain.train()
    plain(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in plain.named_buffers())
    assert plain.fc.weight.grad is not None
    assert plain.conv1.weight.grad is None


def test_a_network_without_a_head():
    with pytest.raises(ConfigError, match="5 classes"):
        freeze_backbone(nn.Sequential(nn.Flatten(), nn.Linear(3, 4)), 5)
