"""Pretrained weights of timm, fetched for `launch.init_weights`."""

import sys
from collections.abc import Mapping

import safetensors.torch
import timm

from models import external
from orchestrator.config.parse import ConfigError
from orchestrator.torch_workers.entry import json_entry_point


def fetch(name: str, file: str) -> Mapping[str, str]:
    """Write the weights of timm/NAME as a safetensors file."""
    bare_name = name.removeprefix("timm/")
    if not external.is_known(name) or not timm.models.is_model_pretrained(bare_name):
        raise ConfigError(
            f"init_from={name}: timm has no such pretrained weights",
            value=name,
            hint="List them: python -c 'import timm; print(timm.list_pretrained(\"*resnet*\"))'",
        )
    try:
        network = timm.create_model(bare_name, pretrained=True)
    except Exception as error:  # of the hub, of requests, of the network
        raise ConfigError(
            f"init_from={name}: its weights cannot be fetched: {type(error).__name__}: {error}",
            value=name,
            hint="Run `tahoe train|submit`, which keeps them in the run directory, where there is "
            "a network; or give a safetensors file.",
        ) from error
    safetensors.torch.save_model(network, file)
    return {}


if __name__ == "__main__":
    sys.exit(json_entry_point(fetch))
