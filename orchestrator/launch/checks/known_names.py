"""Names of a config that are known to exist, looked up without torch.

A name that is not found here may exist all the same. A process with torch decides, which takes some
seconds, so it is not started for a run with plain names.
"""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import models
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config

# Arguments by which timm and torchvision download weights, or read them from a file.
_FETCHING = re.compile("pretrained|pretrained_cfg.*|checkpoint_path|weights|weights_backbone")


def are_known(config: Config) -> bool:
    """Check whether everything that a config names exists and fits, with no arguments to check.

    Not every network returns a loss of its own, or can train on one image at a time.
    """
    recipe, augment = config.recipe, config.recipe.augment
    has_kwargs = config.model.kwargs or recipe.optimizer.kwargs or augment.auto_augment_kwargs
    changes_colors = augment.auto_augment or any(augment.color_jitter) or augment.pca_lighting_std
    return (
        not (has_kwargs or changes_colors)
        and recipe.loss != "model"
        and recipe.global_batch_size != recipe.num_micro_batches
        and config.model.name in {*models.OWN, *_models()}
        and recipe.optimizer.name in _optimizers()
    )


def reject_downloads(config: Config) -> None:
    """Refuse arguments by which every rank of every attempt would download weights."""
    kwargs = config.model.kwargs
    library, _, name = config.model.name.partition("/")
    keys = [key for key, value in kwargs.items() if value and _FETCHING.fullmatch(key)]
    if not keys or library not in ("timm", "torchvision"):
        return
    init_from = f"timm/{name}" if library == "timm" else "FILE.safetensors"
    raise ConfigError(
        f"{', '.join(f'model.kwargs.{key}={kwargs[key]}' for key in keys)}: every rank would "
        "download weights in every attempt, which nodes without internet cannot, and attempts "
        "might get different ones",
        value=keys,
        hint=f"Leave it out and give init_from={init_from}: that is fetched once, into the run "
        "directory.",
    )


@cache
def _models() -> frozenset[str]:
    """Collect the models that timm's and torchvision's files register."""
    decorated = re.compile(r"@register_model(?:\(\))?\n(?:@.*\n)*def (\w+)")
    return frozenset(
        f"{library}/{name}"
        for library in ("timm", "torchvision")
        for file in (_package(library) / "models").glob("*.py")
        for name in decorated.findall(file.read_text())
    )


@cache
def _optimizers() -> frozenset[str]:
    text = (_package("timm") / "optim" / "_optim_factory.py").read_text()
    return frozenset(re.findall(r"\bname='(?!bnb)(\w+)'", text))  # bitsandbytes may be absent


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None  # both are dependencies
    assert spec.origin is not None
    return Path(spec.origin).parent
