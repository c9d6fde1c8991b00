import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from models.historical.lenet5_1998 import (
    C3_INPUTS,
    LeNet5,
    SparseConv2d,
    Subsampling,
    scaled_tanh,
)

HEADS = ["linear", "rbf"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# The paper's numbers, section II-B.


@pytest.mark.parametrize(
    ("layer", "parameters", "connections"),
    [
        ("c1", 156, 122_304),
        ("s2", 12, 5_880),
        ("c3", 1_516, 151_600),
        ("s4", 32, 2_000),
        ("c5", 48_120, 48_120),
        ("f6", 10_164, 10_164),
    ],
)
def test_layers_have_the_papers_sizes(layer, parameters, connections):
    network = LeNet5(num_classes=10, in_channels=1)
    module = getattr(network, layer)
    assert num_parameters(module) == parameters

    positions = []
    module.register_forward_hook(lambda _m, _x, y: positions.append(y[0, 0].numel()))
    network(torch.zeros(1, 1, 32, 32))
    # A trained weight is a connection at every position; a subsampling unit has four and a bias.
    weights_per_position = module.bias.numel() * 5 if layer in ("s2", "s4") else parameters
    assert weights_per_position * positions[0] == connections


def test_trunk_has_sixty_thousand_parameters():
    assert num_parameters(LeNet5(num_classes=10, in_channels=1, head="rbf")) == 60_000
    assert num_parameters(LeNet5(num_classes=10, in_channels=1)) == 60_000 + 850


def test_connection_table():
    contiguous_3 = [{i % 6 for i in range(first, first + 3)} for first in range(6)]
    contiguous_4 = [{i % 6 for i in range(first, first + 4)} for first in range(6)]
    rest = [{0, 1, 3, 4}, {1, 2, 4, 5}, {0, 2, 3, 5}, {0, 1, 2, 3, 4, 5}]
    assert [set(seen) for seen in C3_INPUTS] == contiguous_3 + contiguous_4 + rest


def test_c3_equals_sixteen_small_convolutions():
    c3 = SparseConv2d()
    x = torch.randn(2, 6, 14, 14)
    kernels = iter(c3.kernels)
    maps = []
    for seen, bias in zip(C3_INPUTS, c3.bias, strict=True):
        weight = torch.stack([next(kernels) for _ in seen])[None]
        maps.append(F.conv2d(x[:, seen], weight, bias[None]))
    assert_close(c3(x), torch.cat(maps, dim=1), atol=1e-6, rtol=0)


def test_gradient_reaches_every_c3_kernel():
    c3 = SparseConv2d()
    c3(torch.randn(2, 6, 14, 14)).square().sum().backward()
    assert (c3.kernels.grad.abs().amax(dim=(1, 2)) > 0).all()


def test_subsampling_scales_the_sum_of_four():
    s2 = Subsampling(6)
    x = torch.randn(2, 6, 28, 28)
    assert_close(s2(x), F.avg_pool2d(x, 2))  # how it starts

    nn.init.normal_(s2.coefficient)
    nn.init.normal_(s2.bias)
    per_map = (1, 6, 1, 1)
    expected = F.avg_pool2d(x, 2) * 4 * s2.coefficient.view(per_map) + s2.bias.view(per_map)
    assert_close(s2(x), expected)


def test_scaled_tanh_maps_one_to_one():
    assert_close(scaled_tanh(torch.tensor([-1.0, 0.0, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))
    assert_close(scaled_tanh(torch.tensor(100.0)), torch.tensor(1.7159))


def test_tanh_follows_every_layer_up_to_f6():
    network = LeNet5(num_classes=10, in_channels=1)
    inputs = {}
    for name in ("s2", "c3", "s4", "c5", "f6", "head"):
        getattr(network, name).register_forward_pre_hook(
            lambda _m, x, name=name: inputs.update({name: x[0]})
        )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1000)
        network(torch.randn(1, 1, 32, 32))
    assert {name: round(x.abs().max().item(), 4) for name, x in inputs.items()} == dict.fromkeys(
        ("s2", "c3", "s4", "c5", "f6", "head"), 1.7159
    )


def test_weights_start_within_the_papers_range():
    network = LeNet5(num_classes=10, in_channels=1)
    fan_ins = [(network.c1.weight, 25), (network.c5.weight, 400), (network.f6.weight, 120)]
    kernels = iter(network.c3.kernels)
    for seen in C3_INPUTS:
        fan_ins += [(next(kernels), 25 * len(seen)) for _ in seen]
    for weight, fan_in in fan_ins:
        largest = weight.abs().max().item() * fan_in**0.5
        assert 0.7 * 2.4 < largest <= 2.4 * (1 + 1e-6)


# The output units.


def test_rbf_logits_are_minus_the_squared_distances():
    head = LeNet5(num_classes=10, head="rbf").head
    x = torch.randn(3, 84)
    for sample, logits in zip(x, head(x), strict=True):
        for digit, logit in zip(head.bitmaps, logits, strict=True):
            distance = sum(
                (a - w) ** 2 for a, w in zip(sample.tolist(), digit.tolist(), strict=True)
            )
            assert logit.item() == pytest.approx(-distance, rel=1e-5)


def test_bitmaps_are_ten_different_pictures_and_stay_fixed():
    head = LeNet5(num_classes=10, head="rbf").head
    assert head.bitmaps.shape == (10, 7 * 12)
    assert set(head.bitmaps.unique().tolist()) == {-1.0, 1.0}
    assert (F.pdist(head.bitmaps) ** 2 / 4 > 8).all()  # pixels in which two digits differ
    assert not list(head.parameters())
    assert head(head.bitmaps).argmax(1).tolist() == list(range(10))


def test_bitmaps_read_row_by_row():
    one = LeNet5(num_classes=10, head="rbf").head.bitmaps[1].view(12, 7)
    assert ["".join("#" if ink > 0 else "." for ink in row) for row in one] == [
        ".......",
        "...##..",
        "..###..",
        ".####..",
        *["...##.."] * 5,
        ".######",
        ".......",
        ".......",
    ]


def test_rbf_head_is_for_ten_classes():
    with pytest.raises(ValueError, match=r"5 classes.*head=linear"):
        LeNet5(num_classes=5, head="rbf")


def test_unknown_head():
    with pytest.raises(ValueError, match=r"'svm'.*linear"):
        LeNet5(num_classes=10, head="svm")


# The network as a whole.


@pytest.mark.parametrize("in_channels", [1, 3, 4])
@pytest.mark.parametrize("num_classes", [1, 10, 1000])
@pytest.mark.parametrize("n", [1, 5])
def test_logits_shape(n, num_classes, in_channels):
    network = LeNet5(num_classes=num_classes, in_channels=in_channels)
    assert network(torch.randn(n, in_channels, 32, 32)).shape == (n, num_classes)


@pytest.mark.parametrize("size", [(28, 28), (32, 28), (64, 64), (224, 224)])
def test_other_image_sizes_are_refused(size):
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]}.*image_size=32"):
        LeNet5(num_classes=10)(torch.randn(1, 3, *size))


@pytest.mark.parametrize("head", HEADS)
def test_overfits_twenty_random_images(head):
    images, labels = torch.randn(20, 1, 32, 32), torch.arange(20) % 10
    network = LeNet5(num_classes=10, in_channels=1, head=head)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


@pytest.mark.parametrize("head", HEADS)
def test_channels_last_gives_the_same_logits(head):
    network = LeNet5(num_classes=10, head=head)
    x = torch.randn(4, 3, 32, 32)
    expected = network(x)
    network.to(memory_format=torch.channels_last)
    assert_close(network(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("head", HEADS)
def test_bf16_autocast_trains(head):
    network = LeNet5(num_classes=10, head=head)
    x = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
        loss = F.cross_entropy(logits, torch.arange(4))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert_close(logits.float(), network(x), atol=0.02, rtol=0.005)


@pytest.mark.parametrize("head", HEADS)
def test_meta_network_is_whole_once_loaded(head):
    original = LeNet5(num_classes=10, head=head)
    with torch.device("meta"):
        network = LeNet5(num_classes=10, head=head)
        assert network(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert num_parameters(network) == num_parameters(original)

    network.to_empty(device="cpu").load_state_dict(original.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(x), original(x))


@pytest.mark.parametrize("head", HEADS)
def test_compiles_in_one_graph(head):
    network = LeNet5(num_classes=10, head=head)
    x = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert_close(compiled(x), network(x))


@pytest.mark.parametrize("head", HEADS)
def test_ddp_gives_the_same_gradients(head, tmp_path):
    network = LeNet5(num_classes=10, head=head)
    x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        replica = DistributedDataParallel(copy.deepcopy(network))
        F.cross_entropy(replica(x), labels).backward()
    finally:
        dist.destroy_process_group()
    F.cross_entropy(network(x), labels).backward()
    for ours, theirs in zip(network.parameters(), replica.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


def test_small_digits_get_a_border_of_the_background():
    network = LeNet5(num_classes=10, in_channels=1, head="rbf", border=2)
    small = torch.randn(2, 1, 28, 28)
    large = torch.full((2, 1, 32, 32), -0.1)
    large[:, :, 2:30, 2:30] = small
    logits = network(small)
    network.border = 0
    assert torch.equal(logits, network(large))
