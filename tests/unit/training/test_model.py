"""What torch, or the objective, would refuse of the first step is refused before it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.config.parse import ConfigError
from orchestrator.launch.compose import compose
from orchestrator.training.task.linear_probe import freeze_backbone
from orchestrator.training.task.model import build_model, check_step, model_cost

ONE_IMAGE = ("recipe.global_batch_size=4", "recipe.num_micro_batches=4", "data.num_lanes=4")
SMALL = ("+model.kwargs.stages=1", "+model.kwargs.field=5")
GROWING = (
    "recipe.progressive_resize={start_size: 32, start_epoch: 0, end_epoch: 9, size_divisor: 32}"
)


def check(*arguments: str) -> None:
    """Check a network, and that it is as it was before."""
    (composed,) = compose(arguments)
    network = build_model(composed.config, 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_step(network, composed.config)
    assert network.training
    assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["model=resnet18", "recipe.loss=model"], "recipe.loss=model"),
        (["model=resnet18", *ONE_IMAGE], "recipe.num_micro_batches"),
        (["model=resnet18", *ONE_IMAGE, "data.image_size=64", GROWING], "at 32 pixels"),
        (
            ["model=lenet5_1998", "data.eval_protocol=ten-crop-28-of-32"],
            "data.eval_protocol=ten-crop-28-of",
        ),
        (["model=lenet5_1998", GROWING.replace("32", "24")], "start_size=24"),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=autoencoder_2006", "recipe=autoencoder_2006"],
        ["model=cat_2012", "recipe=cat_2012", *SMALL],
        ["model=lenet5_1998", *ONE_IMAGE],  # which has no batch norm
        ["model=resnet18", "data.eval_protocol=center-40-of-48"],  # which takes images of any size
        ["model=resnet18", *ONE_IMAGE, "data.image_size=64"],  # whose last maps are of 2x2
        [
            "model=resnet18",
            *ONE_IMAGE,
            "recipe.linear_probe=true",
        ],  # whose batch norm does not learn
    ],
)
def test_a_cost_of_its_own_and_one_image_at_a_time_may_do(arguments: list[str]) -> None:
    check(*arguments)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_wherever_it_is_counted(device: str) -> None:
    """A ViT by hand; the ranks count on the CPU, and `doctor` without memory."""
    options = (
        "+model.kwargs.depth=2",
        "+model.kwargs.embed_dim=64",
        "+model.kwargs.num_heads=2",
    )
    size = ("data.image_size=64", "data.in_channels=3", "data.mean=[0,0,0]", "data.std=[1,1,1]")
    (composed,) = compose(
        ["model=timm/vit_tiny_patch16_224", "+model.kwargs.img_size=64", *options, *size]
    )
    with torch.device(device):
        found = model_cost(build_model(composed.config, 10), composed.config)
    tokens, width = 17, 64
    block = 12 * tokens * width**2 + 2 * tokens**2 * width  # products with weights, and attention
    patches = 16 * (3 * 16 * 16) * width
    assert found["model/gmacs"] == pytest.approx((2 * block + patches + width * 10) / 1e9, rel=1e-6)


@pytest.mark.parametrize("model", ["alexnet_2012", "timm/resnet10t"])
def test_a_probe_computes_no_gradient_of_what_is_frozen(model: str) -> None:
    """As torch counts it; all of a network is trained with three times its forward pass."""
    size = ("data.image_size=224", "data.in_channels=3", "data.mean=[0,0,0]", "data.std=[1,1,1]")
    (composed,) = compose([f"model={model}", "recipe.linear_probe=true", *size])
    (trained,) = compose([f"model={model}", *size])
    with torch.device("meta"):
        network = build_model(composed.config, 10)
        found, whole = (model_cost(network, one.config) for one in (composed, trained))
        freeze_backbone(network, 10)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 224, 224)).sum().backward()
    assert found["model/training_gmacs"] == pytest.approx(counter.get_total_flops() / 2e9)
    assert found["model/gmacs"] == whole["model/gmacs"]
    assert whole["model/training_gmacs"] == pytest.approx(3 * whole["model/gmacs"])
