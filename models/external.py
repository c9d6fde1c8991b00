"""The networks of timm and torchvision, under the names `timm/<name>` and `torchvision/<name>`."""

from typing import Any

import timm
from torchvision import models as torchvision


def names() -> list[str]:
    """Return the full names that can be built, without timm's weight tags."""
    return [
        *(f"timm/{name}" for name in timm.list_models()),
        # Classifiers only: detectors and segmenters have other outputs and fetch a backbone.
        *(f"torchvision/{name}" for name in torchvision.list_models(module=torchvision)),
    ]


def is_known(name: str) -> bool:
    """Tell whether `build_external` can build this full name."""
    library, _, bare_name = name.partition("/")
    if library == "torchvision":
        return name in names()
    # timm itself would also follow "hf-hub:..." and load whatever lies there.
    is_tagged = "." in bare_name
    return timm.is_model(bare_name) and (
        not is_tagged or bare_name in timm.list_models(include_tags=True)
    )


def build_external(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> Any:
    """Return the known network `name`; ValueError names options that it does not accept."""
    library, _, bare_name = name.partition("/")
    if library == "torchvision" and in_channels != 3:
        raise ValueError(
            f"Network {name!r} cannot be built for in_channels={in_channels}: torchvision's "
            f"networks take 3 channels. Feed it RGB images, or take timm/<name>, whose networks "
            f"take any number."
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
            f"Network {name!r} cannot be built with the options {given}: {error}. "
            f"Leave out or correct what {library} does not accept."
        ) from error
