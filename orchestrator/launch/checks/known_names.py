"""Names of a config, looked up before anything is made for its run, and without torch.

What is found here is there. What is not found may be, and is asked of a process that has torch:
that takes some seconds, so it is asked of no run whose names are plain.
"""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import models
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config

# Of options by which timm and torchvision fetch weights, or take them from a file.
_FETCHING = re.compile("pretrained|pretrained_cfg.*|checkpoint_path|weights|weights_backbone")


def are_known(config: Config) -> bool:
    """Whether all that a config names is surely there, and fits, without options to be wrong.

    Not every network returns a cost of its own, or can learn from one image at a time.
    """
    optimizer, distort = config.recipe.optimizer, config.recipe.augment
    has_options = bool(config.model.kwargs or optimizer.kwargs or distort.auto_augment_kwargs)
    changes_colours = bool(
        distort.auto_augment or any(distort.color_jitter) or distort.pca_lighting_std
    )
    recipe = config.recipe
    is_usual = recipe.loss != "model" and recipe.global_batch_size > recipe.num_micro_batches
    return (
        is_usual
        and not (has_options or changes_colours)
        and config.model.name in {*models.OWN, *_networks()}
        and optimizer.name in _optimizers()
    )


def reject_downloads(config: Config) -> None:
    """Refuse options by which every rank of every attempt would fetch weights.

    Raises:
        ConfigError: there are some; the message names what does it once.
    """
    name, options = config.model.name, config.model.kwargs
    library, _, bare_name = name.partition("/")
    found = [key for key, value in options.items() if value and _FETCHING.fullmatch(key)]
    if not found or library not in ("timm", "torchvision"):
        return
    given = ", ".join(f"model.kwargs.{key}={options[key]}" for key in found)
    where = f"init_from=timm/{bare_name}" if library == "timm" else "init_from=FILE.safetensors"
    raise ConfigError(
        f"{given}: every rank would fetch weights anew in every attempt, which nodes without a "
        f"network cannot, and no two attempts would be sure to get the same. Leave it out and give "
        f"{where}: those are fetched once, and lie in the run directory."
    )


@cache
def _networks() -> frozenset[str]:
    """Return the networks that timm's and torchvision's files register."""
    mark = re.compile(r"@register_model(?:\(\))?\n(?:@.*\n)*def (\w+)")
    files = (
        (library, file)
        for library in ("timm", "torchvision")
        for file in (_package(library) / "models").glob("*.py")
    )
    return frozenset(
        f"{library}/{name}" for library, file in files for name in mark.findall(file.read_text())
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
