"""A name and a number of classes in, a freshly initialised network out.

    lenet5_1998              Tahoe's own: one file a paper, in `historical`
    timm/resnet50            any network of timm, also with a weight tag: timm/resnet50.a1_in1k
    torchvision/resnet50     any classifier of torchvision, with fresh weights
    package.module:function  yours: called with num_classes=, in_channels= and your options

There is nothing to register with: a network is what an import finds. torch, timm and torchvision
are imported when something is built, and not before.
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

# Our own networks are found the way a user's are.
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
    """Return the network `name`, from images `[n, in_channels, h, w]` to logits `[n, num_classes]`.

    One that is trained without labels gives the cost of each image instead, `[n]`.

    `options` go to the network as they are; its weights depend on torch's global seed and on
    nothing else. ValueError says what is not possible and what is: an unknown name, options that
    the network does not accept (torchvision's convnext and mobilenet_v3 take any and ignore what
    they do not know), a function that cannot be imported or returns something else.
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
            f"Network {name!r} cannot be trained: building it gave a {type(network).__name__} and "
            f"not a torch.nn.Module. Let the function return the network itself."
        )
    return network


def _find(name: str) -> Callable[..., Any]:
    """Import what an own name, or `package.module:function`, stands for."""
    target = OWN.get(name, name)
    if not re.fullmatch(r"\w[\w.]*:\w+", target):
        raise _unknown(name)
    module_name, function_name = target.split(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is there and lacks an import of its own must show its own traceback.
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"Network {name!r} cannot be built: there is no module {error.name!r} to import. "
            f"Put the directory that holds it on PYTHONPATH, or install it."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"Network {name!r} cannot be built: {module} has no function {function_name!r}. "
            f"Define it there, or correct the name."
        )
    return function  # type: ignore[no-any-return]  # callable() says nothing of what it returns


def _check_arguments(name: str, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    # Before the call and not around it: a TypeError from inside the function keeps its traceback.
    signature = inspect.signature(function)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(
            f"Network {name!r} cannot be called with {given}: {error}. "
            f"It takes {signature}. Leave out or correct what does not fit."
        ) from error


def _unknown(name: str) -> ValueError:
    from models import external

    # Compared without the library: who writes "resnet18" hears of timm's and of torchvision's.
    full_names = defaultdict(list)
    for known in (*OWN, *external.names()):
        full_names[known.rpartition("/")[2]].append(known)
    near_names = get_close_matches(name.rpartition("/")[2].lower(), full_names)
    near = [full_name for near_name in near_names for full_name in full_names[near_name]]
    return ValueError(
        f"There is no network {name!r} to build. Near names: {', '.join(near) or 'none'}. "
        f"A name is one of Tahoe's own ({', '.join(OWN)}), timm/<name>, torchvision/<name>, or "
        f"package.module:function for yours."
    )
