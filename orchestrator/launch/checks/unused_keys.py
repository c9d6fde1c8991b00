"""Warnings of command-line keys that have no effect in the composed config.

A key that a config group sets, and another choice makes idle, gives no warning.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache

from data_sharding.transforms.eval_protocol import parse_protocol
from orchestrator.config.schema import Config, Slurm

_KEY = re.compile(r"\+{0,2}([\w.]+)=")
_CROP_KEYS = {
    "random_crop_padded": ("padding",),
    "resize_crop": ("resize_range", "center_square_first"),
    "random_resized_crop": ("scale", "ratio"),
}


def warn_unused_keys(config: Config, overrides: Sequence[str]) -> None:
    """Print the warnings, each once for all points of a sweep."""
    for warning in unused_keys(config, overrides):
        _warn_once(warning)


@cache
def _warn_once(warning: str) -> None:
    print(f"warning: {warning}", file=sys.stderr)


def unused_keys(config: Config, overrides: Sequence[str]) -> Iterator[str]:
    """Yield a warning for each given key that has no effect, or needs another key."""
    given = [match[1] for override in overrides if (match := _KEY.match(override))]

    def is_given(key: str) -> bool:
        return any(name == key or name.startswith(f"{key}.") for name in given)

    for key, why in _idle_keys(config).items():
        if is_given(key):
            yield f"{key} has no effect: {why}"
    data, recipe = config.data, config.recipe
    crop = parse_protocol(data.eval_protocol).crop
    only_train = is_given("data.image_size") and not is_given("data.eval_protocol")
    if only_train and crop != data.image_size:
        yield (
            f"data.image_size={data.image_size}, and data.eval_protocol={data.eval_protocol} "
            f"evaluates at {crop} pixels. Give data.eval_protocol too if that is not intended"
        )
    schedule = recipe.schedule
    never_decays = not (schedule.decay_milestones or schedule.decay_every_epochs)
    if schedule.name == "multistep" and never_decays:
        yield (
            "recipe.schedule.name=multistep never decays, so the rate stays the same. Give "
            "recipe.schedule.decay_milestones or decay_every_epochs"
        )
    if recipe.linear_probe and config.init_from is None:
        yield (
            "recipe.linear_probe=true trains the head of a network whose other weights are random "
            "and stay so. Give init_from"
        )


def _idle_keys(config: Config) -> dict[str, str]:
    """Map each key that has no effect in this config to the reason."""
    recipe, mixup, mode = config.recipe, config.recipe.mixup, config.data.crop.mode
    schedule, is_local = recipe.schedule, config.launcher.name == "local"
    by_schedule = f"recipe.schedule.name is {schedule.name}"
    by_launcher = (
        "this machine starts the ranks: launcher.nproc_per_node gives their number"
        if is_local
        else "Slurm starts the ranks: slurm.nodes, tasks_per_node, gpus_per_node give their number"
    )
    decay_keys = [f"recipe.schedule.decay_{key}" for key in ("milestones", "every_epochs", "rate")]
    slurm_keys = [f"slurm.{field.name}" for field in fields(Slurm)]
    local_keys = ["launcher.nproc_per_node", "launcher.grace_period_s"]
    tracking_keys = ["tracking.uri", "tracking.experiment"]
    rules = [
        (not (mixup.mixup_alpha or mixup.cutmix_alpha), "mixup_alpha and cutmix_alpha are 0",
         ["recipe.mixup.prob"]),
        (recipe.augment.auto_augment is None, "recipe.augment.auto_augment is null",
         ["recipe.augment.auto_augment_kwargs"]),
        (recipe.bce_pos_weight != "auto", "recipe.bce_pos_weight is not auto",
         ["recipe.bce_max_pos_weight"]),
        (recipe.loss != "bce", "recipe.loss is not bce",
         ["recipe.bce_target_threshold", "recipe.bce_pos_weight", "recipe.bce_max_pos_weight"]),
        (recipe.loss != "bce", "images have one label each, as recipe.loss is not bce",
         ["evaluate.threshold"]),
        (recipe.loss == "model", "recipe.loss is model", ["recipe.label_smoothing"]),
        (schedule.name != "multistep", by_schedule, decay_keys),
        (schedule.name in ("multistep", "constant"), by_schedule,
         ["recipe.schedule.min_lr_factor"]),
        (schedule.name == "multistep" and bool(schedule.decay_milestones),
         "recipe.schedule.decay_milestones is given", ["recipe.schedule.decay_every_epochs"]),
        (config.runtime.device == "cpu", "runtime.device is cpu, whose kernels are deterministic",
         ["runtime.deterministic"]),
        (recipe.linear_probe, "recipe.linear_probe keeps no activations but the head's",
         ["recipe.grad_checkpointing"]),
        (config.data.label == "none", "data.label is none", ["data.multi_label"]),
        (recipe.class_balanced, "recipe.class_balanced is true", ["data.shuffle_block_size"]),
        (recipe.num_micro_batches != "auto",
         f"recipe.num_micro_batches is fixed at {recipe.num_micro_batches}",
         ["runtime.max_images_per_device"]),
        *((mode != other, f"data.crop.mode is {mode}", [f"data.crop.{key}" for key in keys])
          for other, keys in _CROP_KEYS.items()),
        (is_local, by_launcher, slurm_keys),
        (not is_local, by_launcher, local_keys),
        (config.strategy.name == "fsdp2", "strategy is fsdp2, which sends block by block",
         ["strategy.bucket_cap_mb"]),
        (config.world_size == 1, "there is one rank, which sends nothing",
         ["strategy.bucket_cap_mb", "strategy.comm_hook"]),
        (config.strategy.comm_hook != "powersgd", "strategy.comm_hook is not powersgd",
         ["strategy.matrix_approximation_rank", "strategy.start_powersgd_step"]),
        (config.profile.enabled is False, "profile.enabled is false", ["profile.steps"]),
        (not config.tracking.enabled, "tracking is none", tracking_keys),
    ]  # fmt: skip
    return {key: why for applies, why, keys in rules if applies for key in keys}
