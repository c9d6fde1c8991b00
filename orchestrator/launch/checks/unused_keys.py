"""Keys of the command line that have no effect beside the others, and are worth a word.

What a group leaves behind where another choice makes it idle is not said: nobody asked for it.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache

from data_sharding.transforms.eval_protocol import parse_protocol
from orchestrator.config.schema import Config, Slurm

_KEY = re.compile(r"\+{0,2}([\w.]+)=")


def warn_unused_keys(config: Config, overrides: Sequence[str]) -> None:
    """Print what has no effect, once for all points of a sweep."""
    for line in unused_keys(config, overrides):
        _tell(line)


@cache
def _tell(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def unused_keys(config: Config, overrides: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each key that was given for nothing, or without what belongs to it."""
    named = [match[1] for one in overrides if (match := _KEY.match(one))]

    def is_named(key: str) -> bool:
        return any(one == key or one.startswith(f"{key}.") for one in named)

    for key, why in _without_effect(config):
        if is_named(key):
            yield f"{key} has no effect: {why}"
    data, schedule = config.data, config.recipe.schedule
    crop = parse_protocol(data.eval_protocol).crop
    if (
        crop != data.image_size
        and is_named("data.image_size")
        and not is_named("data.eval_protocol")
    ):
        yield (
            f"data.image_size={data.image_size}, and data.eval_protocol={data.eval_protocol} "
            f"evaluates at {crop} pixels. Give data.eval_protocol too if that is not intended"
        )
    if schedule.name == "multistep" and not (
        schedule.decay_milestones or schedule.decay_every_epochs
    ):
        yield (
            "recipe.schedule.name=multistep never decays, so the rate stays the same. Give "
            "recipe.schedule.decay_milestones or decay_every_epochs"
        )
    if config.recipe.linear_probe and config.init_from is None:
        yield (
            "recipe.linear_probe=true trains the head of a network whose other weights are random "
            "and stay so. Give init_from"
        )


def _without_effect(config: Config) -> Iterator[tuple[str, str]]:
    """Yield each key that has no effect in this config, and why."""
    for applies, keys, why in (*_of_recipe(config), *_of_crops(config), *_of_launch(config)):
        yield from ((key, why) for key in keys if applies)


def _of_recipe(config: Config) -> Iterator[tuple[bool, Sequence[str], str]]:
    recipe, schedule = config.recipe, config.recipe.schedule
    mixes = recipe.mixup.mixup_alpha or recipe.mixup.cutmix_alpha
    yield not mixes, ["recipe.mixup.prob"], "mixup_alpha and cutmix_alpha are 0"
    no_policy = recipe.augment.auto_augment is None
    yield no_policy, ["recipe.augment.auto_augment_kwargs"], "recipe.augment.auto_augment is null"
    yield recipe.loss != "bce", ["recipe.bce_target_threshold"], "recipe.loss is not bce"
    yield recipe.loss == "model", ["recipe.label_smoothing"], "recipe.loss is model"
    names = ("decay_milestones", "decay_every_epochs", "decay_rate")
    decays = [f"recipe.schedule.{name}" for name in names]
    yield schedule.name != "multistep", decays, f"recipe.schedule.name is {schedule.name}"
    is_flat = schedule.name in ("multistep", "constant")
    yield is_flat, ["recipe.schedule.min_lr_factor"], f"recipe.schedule.name is {schedule.name}"
    if schedule.name == "multistep" and schedule.decay_milestones:
        yield (
            True,
            ["recipe.schedule.decay_every_epochs"],
            "recipe.schedule.decay_milestones is given",
        )
    yield recipe.class_balanced, ["data.shuffle_block_size"], "recipe.class_balanced is true"


def _of_crops(config: Config) -> Iterator[tuple[bool, Sequence[str], str]]:
    is_now = config.data.crop.mode
    for kind, names in (
        ("random_crop_padded", ("padding",)),
        ("resize_crop", ("resize_range", "center_square_first")),
        ("random_resized_crop", ("scale", "ratio")),
    ):
        keys = [f"data.crop.{name}" for name in names]
        yield is_now != kind, keys, f"data.crop.mode is {is_now}"


def _of_launch(config: Config) -> Iterator[tuple[bool, Sequence[str], str]]:
    is_local = config.launcher.name == "local"
    local = "this machine starts the ranks: launcher.nproc_per_node gives their number"
    yield is_local, [f"slurm.{field.name}" for field in fields(Slurm)], local
    remote = "Slurm starts the ranks: slurm.nodes, tasks_per_node, gpus_per_node give their number"
    yield not is_local, ["launcher.nproc_per_node", "launcher.grace_period_s"], remote
    store = ["tracking.uri", "tracking.experiment"]
    yield not config.tracking.enabled, store, "tracking is none"
