import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import models

YOURS = """
from torch import nn

WIDTH = 8

def net(num_classes, in_channels, width=WIDTH):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Linear(width, num_classes))

def greyscale_only(num_classes):
    return nn.Linear(1, num_classes)

def forgets_to_return(num_classes, in_channels):
    nn.Linear(in_channels, num_classes)

def raises_type_error(num_classes, in_channels):
    return "a" + 1
"""


@pytest.fixture
def yours(tmp_path, monkeypatch):
    package = tmp_path / "your_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(YOURS)
    (package / "needs_more.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    yield "your_package.nets"
    for name in [name for name in sys.modules if name.partition(".")[0] == "your_package"]:
        del sys.modules[name]


def logits_shape(network: nn.Module, in_channels: int, size: int) -> tuple[int, ...]:
    return tuple(network.eval()(torch.zeros(2, in_channels, size, size)).shape)


def test_importing_models_imports_no_framework():
    program = "import sys, models; print({'torch', 'timm', 'torchvision'} & set(sys.modules))"
    root = Path(models.__file__).parents[1]
    command = [sys.executable, "-c", program]
    assert subprocess.check_output(command, cwd=root, text=True) == "set()\n"


def test_own_network():
    assert logits_shape(models.build("lenet5_1998", num_classes=7), 3, 32) == (2, 7)


def test_every_own_network_has_a_file_of_its_name():
    for name, target in models.OWN.items():
        assert target.startswith(f"models.historical.{name}:")


def test_timm_network_with_one_channel():
    network = models.build("timm/resnet18", num_classes=5, in_channels=1)
    assert logits_shape(network, 1, 32) == (2, 5)


def test_timm_network_with_a_weight_tag_and_an_option():
    network = models.build("timm/resnet18.a1_in1k", num_classes=5, drop_rate=0.5)
    assert network.drop_rate == 0.5


def test_torchvision_network():
    network = models.build("torchvision/mobilenet_v2", num_classes=5, dropout=0.5)
    assert logits_shape(network, 3, 32) == (2, 5)
    assert network.classifier[0].p == 0.5


def test_torchvision_takes_three_channels():
    with pytest.raises(ValueError, match=r"in_channels=1"):
        models.build("torchvision/resnet18", num_classes=5, in_channels=1)


def test_your_own_function(yours):
    network = models.build(f"{yours}:net", num_classes=5, in_channels=1, width=4)
    assert network[2].in_features == 4
    assert logits_shape(network, 1, 8) == (2, 5)


@pytest.mark.parametrize("name", ["lenet5_1998", "timm/resnet18", "torchvision/squeezenet1_1"])
def test_weights_depend_on_the_global_seed_alone(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in models.build(name, num_classes=2).parameters()])

    first = weights(seed=1)
    assert torch.equal(first, weights(seed=1))
    assert not torch.equal(first, weights(seed=2))


@pytest.mark.parametrize(
    ("misspelt", "similar"),
    [
        ("lenet5_1989", "lenet5_1998"),
        ("LeNet5-1998", "lenet5_1998"),
        ("timm/resnt50", "timm/resnet50"),
        ("resnet18", "torchvision/resnet18"),
        ("torchvision/densenet12", "torchvision/densenet121"),
        ("torchvision/fcn_resnet50", "torchvision/resnet50"),  # not a classifier
        ("timm/resnet18.a1_in2k", "timm/resnet18"),
        ("timm/hf-hub:someone/resnet18", "timm/resnet18"),  # not to be trusted
    ],
)
def test_an_unknown_name_lists_similar_names(misspelt, similar):
    with pytest.raises(ValueError, match="no network") as caught:
        models.build(misspelt, num_classes=5)
    assert repr(misspelt) in str(caught.value)
    assert similar in str(caught.value).partition("Similar names: ")[2].partition(". A name is")[0]


@pytest.mark.parametrize("malformed", ["", "xq-zw", ".nets:net", "nets:", ":net", "timm/", "a:b:c"])
def test_malformed_name_says_what_a_name_is(malformed):
    with pytest.raises(ValueError, match=r"timm/<name>.*package\.module:function"):
        models.build(malformed, num_classes=5)


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
def test_libraries_refuse_unknown_options_by_name(name):
    with pytest.raises(ValueError, match=rf"{name}.*dropuot=0\.5"):
        models.build(name, num_classes=5, dropuot=0.5)


def test_torchvision_starts_from_fresh_weights():
    with pytest.raises(ValueError, match="weights='DEFAULT'"):
        models.build("torchvision/resnet18", num_classes=5, weights="DEFAULT")


def test_own_network_lists_its_options():
    with pytest.raises(
        ValueError, match=r"lenet5_1998.*haed='rbf'.*takes.*head: .*'linear', 'rbf'"
    ):
        models.build("lenet5_1998", num_classes=10, haed="rbf")


def test_your_function_lists_its_options(yours):
    with pytest.raises(ValueError, match=r"wdith=4.*takes \(num_classes, in_channels, width=8\)"):
        models.build(f"{yours}:net", num_classes=5, wdith=4)


def test_your_function_must_take_in_channels(yours):
    with pytest.raises(ValueError, match=r"in_channels=3.*takes \(num_classes\)"):
        models.build(f"{yours}:greyscale_only", num_classes=5)


def test_your_function_must_return_a_module(yours):
    with pytest.raises(ValueError, match="NoneType"):
        models.build(f"{yours}:forgets_to_return", num_classes=5)


def test_a_type_error_of_yours_stays_one(yours):
    with pytest.raises(TypeError, match="concatenate"):
        models.build(f"{yours}:raises_type_error", num_classes=5)


@pytest.mark.parametrize("missing", ["no_such_package", "no_such_package.nets", "json.nets"])
def test_your_module_must_be_importable(missing):
    with pytest.raises(ValueError, match=f"{missing}:net.*no module.*PYTHONPATH"):
        models.build(f"{missing}:net", num_classes=5)


def test_a_missing_import_of_yours_is_shown(yours):
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        models.build("your_package.needs_more:net", num_classes=5)


@pytest.mark.parametrize("attribute", ["nett", "WIDTH"])
def test_your_function_must_exist(yours, attribute):
    with pytest.raises(ValueError, match=rf"nets\.py.*has no function '{attribute}'"):
        models.build(f"{yours}:{attribute}", num_classes=5)
