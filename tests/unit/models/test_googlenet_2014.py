import torch

from models.historical.googlenet_2014 import GoogLeNet


def test_table_1() -> None:
    """The sizes that the table gives after each row."""
    network = GoogLeNet(num_classes=1000, aux=False).eval()
    seen = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _m, _x, y, name=name: seen.update({name: y.shape[1:]}))
    with torch.no_grad():
        network(torch.zeros(1, 3, 224, 224))
    depths = {"3a": 256, "3b": 480, "4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832}
    depths |= {"5a": 832, "5b": 1024}
    sides = {"3": 28, "4": 14, "5": 7}
    for name, depth in depths.items():
        assert seen[f"inception{name}"] == (depth, sides[name[0]], sides[name[0]])
    assert seen["conv1"] == (64, 112, 112)
    assert seen["conv2"] == (192, 56, 56)


def test_auxiliary_heads_are_for_training() -> None:
    network = GoogLeNet(num_classes=5, width=0.1, image_size=96)
    images = torch.randn(2, 3, 96, 96)
    logits, first, second = network(images)
    assert logits.shape == first.shape == second.shape == (2, 5)
    assert network.eval()(images).shape == (2, 5)
    assert network.aux_weight == 0.3
