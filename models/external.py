"""The networks of timm and torchvision, under the names `timm/<name>` and `torchvision/<name>`."""

from typing import Any

import timm
from torchvision import models as torchvision


def names() -> list[str]:
    """List the full names that can be built, without timm's weight tags."""
    return [
        *(f"timm/{name}" for name in timm.list_models()),
        # Classifiers only: detectors and segmenters have other outputs and fetch a backbone.
        *(f"torchvision/{name}" for name in torchvision.list_models(module=torchvision)),
    ]


def is_known(name: str) -> bool:
    """Check whether `build_external` can build this full name."""
    library, _, bare_name = name.partition("/")
    if library == "torchvision":
        return name in names()
    # timm itself would also follow "hf-hub:..." and load whatever is there.
    is_tagged = "." in bare_name
    tags = timm.list_models(include_tags=True) if is_tagged else ()
    return timm.is_model(bare_name) and (not is_tagged or bare_name in tags)


def build_external(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> Any:
    """Build the known network `name`; ValueError if it does not accept an option."""
    library, _, bare_name = name.partition("/")
    if library == "torchvision" and in_channels != 3:
        raise ValueError(
            f"network {name!r} cannot be built for in_channels={in_channels}: torchvision's "
            "networks take 3 channels. Use RGB images, or a network of timm, which take any number."
        )
    try:
        if library == "torchvision":
            return torchvision.get_model(
                bare_name, weights=None, num_classes=num_classes, **options
            )
        return timm.create_model(
            bare_name, num_classes=num_classes, in_chans=in_channels, **options
        )
    except TypeError as error:
        if not options:
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ValueError(
            f"network {name!r} cannot be built with the options {given}: {error}. Correct or leave "
            f"out the options that {library} does not accept."
        ) from error
