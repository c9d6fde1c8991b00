"""Compiled training, whole and by blocks; with AOT autograd alone, which needs no C++ compiler."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import models
from orchestrator.config.parse import ConfigError, config_hash, parse, to_dict
from orchestrator.config.recipe import Compile
from orchestrator.config.schema import Config
from orchestrator.training.step.compile import compile_model, uncompiled
from orchestrator.training.task.grad_checkpointing import (
    enable_grad_checkpointing,
    restored_buffers,
)
from orchestrator.training.task.model import check_step

# Dynamo looks at the gradient of every input.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
REGIONAL = Compile(backend="aot_eager", regional=True)


def gradients(network: nn.Module, compiled: bool | Compile) -> list[torch.Tensor]:
    """Return the gradients after two passes, with the noise of a step."""
    torch._dynamo.reset()
    counters.clear()
    train = compile_model(network, network, compiled)
    for step in range(2):
        torch.manual_seed(step)
        loss = train(torch.randn(2, 3, 32, 32)).square().mean()
        with restored_buffers(network):
            loss.backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_equal_blocks_are_compiled_once(is_checkpointed: bool) -> None:
    torch.manual_seed(0)
    plain = models.build("timm/test_vit", num_classes=10, img_size=32, proj_drop_rate=0.1)
    network = copy.deepcopy(plain)
    if is_checkpointed:
        enable_grad_checkpointing(network)
    found = gradients(network, REGIONAL)
    assert counters["stats"]["unique_graphs"] == 1
    for ours, theirs in zip(found, gradients(plain, False), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_blocks_of_other_shapes_are_all_compiled() -> None:
    """Torch gives up after 8 forms of a function; ResNet-50 has as many, and another evaluates."""
    torch.manual_seed(0)
    plain = models.build("torchvision/resnet50", num_classes=10)
    network = copy.deepcopy(plain)
    enable_grad_checkpointing(network)
    found = gradients(network, replace(REGIONAL, dynamic=False))
    assert counters["stats"]["unique_graphs"] == 8
    assert not counters["graph_break"]
    for ours, theirs in zip(found, gradients(plain, False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(network.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_evaluation_compiles_nothing() -> None:
    network = models.build("timm/test_vit", num_classes=10, img_size=32)
    torch._dynamo.reset()
    counters.clear()
    compile_model(network, network, REGIONAL)
    with torch.no_grad(), uncompiled(REGIONAL):
        network.eval()(torch.randn(3, 3, 32, 32))
    assert not counters["stats"]["unique_graphs"]


def test_networks_without_blocks_have_no_regions(config: Config) -> None:
    network = models.build("lenet5_1998", num_classes=10, in_channels=1)
    regional = replace(config, recipe=replace(config.recipe, compile=REGIONAL))
    with pytest.raises(ConfigError) as error:
        check_step(network, regional)
    assert error.value.value == "LeNet5"


def test_true_and_false_keep_their_meaning(config: Config) -> None:
    network = nn.Linear(1, 1)
    assert compile_model(network, network, False) is network
    values = to_dict(config)
    values["recipe"]["compile"] = {"mode": "max-autotune", "regional": True}
    parsed = parse(values)
    assert parsed.recipe.compile == Compile(mode="max-autotune", regional=True)
    assert config_hash(parsed) != config_hash(config)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"mode": "fast"}, ".mode"),
        ({"fast": True}, ".fast"),
        ("maybe", ""),
        ({"dynamic": 1}, ".dynamic"),
    ],
)
def test_an_error_names_the_option_alone(config: Config, wrong: object, key: str) -> None:
    values = to_dict(config)
    values["recipe"]["compile"] = wrong
    with pytest.raises(ConfigError) as error:
        parse(values)
    assert error.value.value == [f"recipe.compile{key}"]
