"""Parameters and multiply-adds of Tahoe's own networks, against what is published or was computed.

Where a paper gives a figure it stands in its own digits; the others were computed from the papers'
tables, or are those of the definition file that the docstring of the network names.
"""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models

SIZES: list[tuple[str, dict[str, Any], int, int, float]] = [
    # name, options, image size, parameters, 10^9 multiply-adds
    ("alexnet_2012", {}, 224, 60_965_224, 0.7244),
    ("alexnet_2012", {"variant": "trained"}, 224, 60_965_224, 0.7244),
    ("alexnet_2012", {"overlapping_pooling": False}, 224, 60_965_224, 0.7244),
    ("zfnet_2013", {}, 224, 62_357_608, 1.168),
    ("zfnet_2013", {"wide": True}, 224, 107_627_624, 2.477),
    ("overfeat_2013", {}, 231, 145_920_872, 2.801),
    ("overfeat_2013", {"variant": "accurate"}, 221, 144_656_488, 5.355),
    ("nin_2013", {}, 224, 7_595_176, 1.100),
    ("googlenet_2014", {"aux": False}, 224, 6_998_552, 1.583),
    ("googlenet_2014", {}, 224, 6_998_552 + 6_379_728, 1.583),
    ("bn_inception_2015", {}, 224, 11_188_288, 1.935),
    ("resnet9_2018", {}, 32, 7_080_000, 0.3798),
    # The paper's table 1 says 1.8, 3.6, 3.8, 7.6 and 11.3.
    ("resnet_2015", {"depth": 18}, 224, 11_689_512, 1.814),
    ("resnet_2015", {"depth": 34}, 224, 21_797_672, 3.664),
    ("resnet_2015", {}, 224, 25_557_032, 3.858),
    ("resnet_2015", {"depth": 101}, 224, 44_549_160, 7.570),
    ("resnet_2015", {"depth": 152}, 224, 60_192_808, 11.28),
]


@pytest.mark.parametrize(("name", "options", "size", "parameters", "gmacs"), SIZES)
def test_sizes(
    name: str, options: dict[str, Any], size: int, parameters: int, gmacs: float
) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = models.build(name, num_classes=1000, **options).eval()
        logits = network(torch.empty(1, 3, size, size))
    assert logits.shape == (1, 1000)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=5e-4)


def test_run_150_is_about_as_large_as_run_145() -> None:
    with torch.device("meta"):
        apart = models.build("alexnet_2012", num_classes=1000, cross_tower=False)
    assert sum(p.numel() for p in apart.parameters()) == pytest.approx(60_965_224, rel=0.01)


# What is small enough to be trained for a moment.
SMALL: list[tuple[str, dict[str, Any], int]] = [
    ("lenet5_1998", {}, 32),
    *[("alexnet_2012", {"variant": v, "image_size": 64}, 64) for v in ("printed", "trained")],
    ("zfnet_2013", {"image_size": 64}, 64),
    ("overfeat_2013", {"image_size": 96}, 96),
    ("overfeat_2013", {"image_size": 96, "variant": "accurate"}, 96),
    ("nin_2013", {}, 96),
    ("googlenet_2014", {"image_size": 96}, 96),
    ("bn_inception_2015", {}, 64),
    ("resnet9_2018", {}, 32),
]


@pytest.mark.parametrize(("name", "options", "size"), SMALL)
def test_one_step_down_the_gradient_helps(name: str, options: dict[str, Any], size: int) -> None:
    torch.manual_seed(0)
    narrow = {} if name == "lenet5_1998" else {"width": 0.125}
    network = models.build(name, num_classes=4, in_channels=1, **options, **narrow)
    for module in network.modules():
        if "Dropout" in type(module).__name__:
            module.eval()  # the same function before and after
    images, labels = torch.randn(8, 1, size, size), torch.tensor([0, 1, 2, 3, 0, 1, 0, 0])

    def loss() -> torch.Tensor:
        output = network(images)
        heads = output if isinstance(output, tuple) else (output,)
        assert all(logits.shape == (8, 4) for logits in heads)
        return sum(torch.nn.functional.cross_entropy(logits, labels) for logits in heads)

    before = loss()
    before.backward()
    parameters = dict(network.named_parameters())
    idle = [n for n, p in parameters.items() if p.grad is None or not p.grad.any()]
    assert idle == []
    norm = torch.cat([p.grad.flatten() for p in parameters.values()]).norm()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.sub_(1e-3 * parameter.grad / norm)
    after = loss()
    assert (before - after).item() == pytest.approx(1e-3 * norm.item(), rel=0.3)


@pytest.mark.parametrize("name", ["alexnet_2012", "zfnet_2013", "overfeat_2013", "googlenet_2014"])
def test_images_that_are_too_small(name: str) -> None:
    with pytest.raises(ValueError, match="16x16 images"):
        models.build(name, num_classes=4, image_size=16)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("alexnet_2012", {"variant": "caffe"}, "'caffe'.*printed"),
        ("overfeat_2013", {"variant": "slow"}, "'slow'.*fast"),
        ("resnet_2015", {"depth": 51}, "51 layers.*34, 50"),
    ],
)
def test_unknown_variants_are_refused(name: str, option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(name, num_classes=4, **option)
