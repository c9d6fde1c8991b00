"""Start a network from the weights of another, as far as they fit.

The head stays as initialised where the number of classes differs. timm's networks are adapted by
timm: position embeddings are resampled, the first convolution takes other channels, and old names
are translated.
"""

import logging
import sys
from collections.abc import Callable, Collection, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from timm.models import load_pretrained
from torch import nn

from orchestrator.checkpoint.safetensors_io import read_tensors
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir, RunError

Tensors = Mapping[str, torch.Tensor]
log = logging.getLogger(__name__)
_MAX_NAMES = 2  # of tensors, in messages


def check_unchanged(run: RunDir, config: Config) -> None:
    """Refuse initial weights other than those that the run was created with.

    Raises:
        RunError: the file is missing, or its digest is not that of run_info.json.
    """
    recorded = (run.read_json(run.identity_file) or {}).get("init_from", {}).get("sha256")
    try:
        with run.init_file.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        digest = "no file"
    if digest != recorded:
        raise RunError(
            f"the initial weights of {run.id} in {run.init_file} have changed: their digest is "
            f"{digest}, and run_info.json has {recorded}, so the run would not be what its "
            "config says",
            value=digest,
            hint=f"Restore the file, or start a new run with init_from={config.init_from}.",
        )


def load_initial_weights(
    network: nn.Module, path: Path, num_classes: int, in_channels: int
) -> None:
    """Load a safetensors file into a network on the CPU or a GPU.

    Raises:
        ConfigError: the weights are of another network.
    """
    tensors, own = read_tensors(path), network.state_dict()
    fresh = _fresh_tensors(network, tensors, own, num_classes)
    kept = {name: value for name, value in tensors.items() if name not in fresh}
    merged = kept | {name: own[name].clone() for name in fresh}
    try:
        if hasattr(network, "pretrained_cfg"):
            _load_with_timm(network, merged, num_classes, in_channels)
        else:
            network.load_state_dict(merged)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ConfigError(
            "the weights of init_from do not fit the network: "
            f"{differences(kept, own, fresh) or str(error).splitlines()[0]}",
            value=str(path),
            hint="Take the model that they are of, or other weights.",
        ) from None
    log.info("starts from the weights of init_from; fresh: %s", ", ".join(fresh) or "nothing")


def differences(tensors: Tensors, own: Tensors, fresh: Collection[str] = ()) -> str:
    """Describe how tensors differ from those of a network, with counts and a few names."""
    missing = [name for name in own if name not in tensors and name not in fresh]
    unknown = [name for name in tensors if name not in own]
    reshaped = [
        f"{name}: {tuple(value.shape)} and not {tuple(own[name].shape)}"
        for name, value in tensors.items()
        if name in own and value.shape != own[name].shape
    ]
    kinds = {"are missing": missing, "are unknown to it": unknown, "have another shape": reshaped}
    return "; ".join(
        f"{len(names):,} tensors {kind}, e.g. {', '.join(names[:_MAX_NAMES])}"
        for kind, names in kinds.items()
        if names
    )


def _fresh_tensors(
    network: nn.Module, tensors: Tensors, own: Tensors, num_classes: int
) -> list[str]:
    """Return the names of the head's tensors, if the file has none for as many classes."""
    heads = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    if heads:
        heads = (heads,) if isinstance(heads, str) else heads
        names = [f"{head}.{tensor}" for head in heads for tensor in ("weight", "bias")]
        return [
            name
            for name in names
            if name in own and (name not in tensors or tensors[name].shape != own[name].shape)
        ]
    return [
        name
        for name, value in own.items()
        if name in tensors
        and tensors[name].shape[1:] == value.shape[1:]
        and tensors[name].shape[:1] != value.shape[:1] == (num_classes,)
    ]


def _load_with_timm(
    network: nn.Module, tensors: Tensors, num_classes: int, in_channels: int
) -> None:
    known: Any = network.pretrained_cfg
    given = {"state_dict": tensors, "num_classes": num_classes, "label_offset": 0}
    load_pretrained(
        network,
        pretrained_cfg={**known, **given},
        num_classes=num_classes,
        in_chans=in_channels,
        filter_fn=_checkpoint_filter(network),
        strict=True,
    )


def _checkpoint_filter(network: nn.Module) -> Callable[..., Any] | None:
    """Find timm's translation of old names; a probe or a sharded network derives from timm's."""
    modules = [sys.modules[kind.__module__] for kind in type(network).__mro__]
    filters = (getattr(module, "checkpoint_filter_fn", None) for module in modules)
    return next(filter(None, filters), None)
