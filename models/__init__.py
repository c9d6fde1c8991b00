"""Build a freshly initialised network from a name and a number of classes.

    lenet5_1998              Tahoe's own: one file a paper, in `historical`
    timm/resnet50            any network of timm, also with a weight tag: timm/resnet50.a1_in1k
    torchvision/resnet50     any classifier of torchvision, with fresh weights
    package.module:function  yours: called with num_classes=, in_channels= and your options

There is no registry: a network is whatever can be imported. torch, timm and torchvision are
imported only when a network is built.
"""

import inspect
import re
from collections import defaultdict
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Our own networks are imported the way a user's are.
OWN = {
    "lenet5_1998": "models.historical.lenet5_1998:LeNet5",
    "autoencoder_2006": "models.historical.autoencoder_2006:Autoencoder",
    "cat_2012": "models.historical.cat_2012:LocalRicaNet",
    "alexnet_2012": "models.historical.alexnet_2012:AlexNet",
    "zfnet_2013": "models.historical.zfnet_2013:ZFNet",
    "overfeat_2013": "models.historical.overfeat_2013:OverFeat",
    "nin_2013": "models.historical.nin_2013:NetworkInNetwork",
    "googlenet_2014": "models.historical.googlenet_2014:GoogLeNet",
    "bn_inception_2015": "models.historical.bn_inception_2015:BNInception",
    "resnet9_2018": "models.historical.resnet9_2018:ResNet9",
    "blurpool_2019": "models.historical.blurpool_2019:resnet_blurpool",
    "resnet_2015": "models.historical.resnet_2015:resnet",
}


def build(name: str, *, num_classes: int, in_channels: int = 3, **options: Any) -> "nn.Module":
    """Build the network `name`: images `[n, in_channels, h, w]` to logits `[n, num_classes]`.

    One that is trained without labels returns the cost of each image instead, `[n]`. The weights
    depend on torch's global seed alone.

    Raises:
        ValueError: the name is unknown, the network does not accept an option (torchvision's
            convnext and mobilenet_v3 ignore unknown ones), or the function cannot be imported or
            does not return a network.
    """
    if name.startswith(("timm/", "torchvision/")):
        from models import external

        if not external.is_known(name):
            raise _unknown(name)
        network = external.build_external(name, num_classes, in_channels, options)
    else:
        function = _find(name)
        arguments = {"num_classes": num_classes, "in_channels": in_channels, **options}
        _check_arguments(name, function, arguments)
        network = function(**arguments)

    from torch import nn

    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{name!r} returned a {type(network).__name__} and not a torch.nn.Module, so it cannot "
            "be trained. Let the function return the network itself."
        )
    return network


def _find(name: str) -> Callable[..., Any]:
    """Import the function of one of our own names, or of `package.module:function`."""
    target = OWN.get(name, name)
    if not re.fullmatch(r"\w[\w.]*:\w+", target):
        raise _unknown(name)
    module_name, function_name = target.split(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that exists but fails to import another one shows its own traceback.
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"network {name!r} cannot be built: there is no module {error.name!r}. Put its "
            "directory on PYTHONPATH, or install it."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"network {name!r} cannot be built: {module} has no function {function_name!r}. "
            "Define it there, or correct the name."
        )
    return function  # type: ignore[no-any-return]


def _check_arguments(name: str, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    # Checked before the call: a TypeError from inside the function keeps its traceback.
    signature = inspect.signature(function)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(
            f"network {name!r} cannot be called with {given}: {error}. It takes {signature}. "
            "Correct or leave out the arguments that do not fit."
        ) from error


def _unknown(name: str) -> ValueError:
    from models import external

    # Compared without the library: "resnet18" suggests timm's and torchvision's.
    full_names = defaultdict(list)
    for known in (*OWN, *external.names()):
        full_names[known.rpartition("/")[2]].append(known)
    matches = get_close_matches(name.rpartition("/")[2].lower(), full_names)
    similar = [full_name for match in matches for full_name in full_names[match]]
    return ValueError(
        f"there is no network {name!r}. Similar names: {', '.join(similar) or 'none'}. A name is "
        f"one of Tahoe's own ({', '.join(OWN)}), timm/<name>, torchvision/<name>, or "
        "package.module:function for yours."
    )
