"""A network begins with the weights of another, as far as they fit.

The head is left fresh where the number of classes differs. timm's networks are adapted by timm:
position embeddings are resampled, the first convolution takes other channels, and old names are
translated.
"""

import logging
import sys
from collections.abc import Collection, Mapping
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
_SHOWN = 2  # names of tensors


def check_unchanged(run: RunDir, config: Config) -> None:
    """Refuse weights to begin with that are not those that the run was made with.

    Raises:
        RunError: the file is missing, or has another digest than run.json says.
    """
    begun_with = (run.read_json(run.identity_file) or {}).get("init_from") or {}
    try:
        with run.init_file.open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        found = "no file"
    if begun_with.get("sha256", found) != found:
        raise RunError(
            f"{run.init_file} is not what {run.id} was made to begin with: it has the digest "
            f"{found}, and run.json {begun_with['sha256']}. The run would be another than its "
            f"config says. Put the file back, or start a new run with init_from={config.init_from}."
        )


def load_initial_weights(
    network: nn.Module, path: Path, num_classes: int, in_channels: int
) -> None:
    """Load a safetensors file into a network on the CPU or a GPU.

    Raises:
        ConfigError: the weights are of another network.
    """
    tensors, ours = read_tensors(path), network.state_dict()
    by_timm = hasattr(network, "pretrained_cfg")
    fresh = _reinitialised_head(network, tensors, ours, num_classes)
    kept = {name: value for name, value in tensors.items() if name not in fresh}
    wanted = kept | {name: ours[name].clone() for name in fresh}
    try:
        if by_timm:
            _load_by_timm(network, wanted, num_classes, in_channels)
        else:
            network.load_state_dict(wanted, strict=True)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ConfigError(
            "the weights of init_from do not fit the network: "
            f"{differences(kept, ours, fresh) or str(error).splitlines()[0]}. Take the model that "
            "they are of, or other weights."
        ) from None
    log.info("begins with the weights of init_from; fresh: %s", ", ".join(fresh) or "nothing")


def differences(theirs: Tensors, ours: Tensors, fresh: Collection[str] = ()) -> str:
    """Return in what tensors differ from those of a network, by count and with a few names."""
    lacking = [name for name in ours if name not in theirs and name not in fresh]
    unknown = [name for name in theirs if name not in ours]
    others = [
        f"{name}: {tuple(theirs[name].shape)} and not {tuple(ours[name].shape)}"
        for name in theirs
        if name in ours and theirs[name].shape != ours[name].shape
    ]
    kinds = {"are missing": lacking, "are unknown to it": unknown, "have another shape": others}
    return "; ".join(
        f"{len(names):,} tensors {what}, e.g. {', '.join(names[:_SHOWN])}"
        for what, names in kinds.items()
        if names
    )


def _reinitialised_head(
    network: nn.Module, theirs: Tensors, ours: Tensors, num_classes: int
) -> list[str]:
    """Return the names of the head's tensors, if it is for other classes or not there."""
    known = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    heads = (known,) if isinstance(known, str) else known
    if heads:
        names = [f"{head}.{part}" for head in heads for part in ("weight", "bias")]
        return [
            name
            for name in names
            if name in ours and (name not in theirs or theirs[name].shape != ours[name].shape)
        ]
    return [
        name
        for name, value in ours.items()
        if name in theirs
        and theirs[name].shape[1:] == value.shape[1:]
        and theirs[name].shape[:1] != value.shape[:1] == (num_classes,)
    ]


def _load_by_timm(network: nn.Module, tensors: Tensors, num_classes: int, in_channels: int) -> None:
    known: Any = network.pretrained_cfg
    given = {"state_dict": tensors, "num_classes": num_classes, "label_offset": 0}
    load_pretrained(
        network,
        pretrained_cfg={**known, **given},
        num_classes=num_classes,
        in_chans=in_channels,
        filter_fn=getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None),
        strict=True,
    )
