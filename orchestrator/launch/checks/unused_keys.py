"""Keys of the command line that have no effect beside the others, and are worth a word.

What a group leaves behind where another choice makes it idle is not said: nobody asked for it.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache

from data_sharding.transforms.eval_protocol import parse_protocol
from orchestrator.config.schema import Config

_KEY = re.compile(r"\+{0,2}([\w.]+)=")
_OF_SLURM = (
    *("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min"),
    *("partition", "account", "qos", "constraint", "exclude", "array_parallelism"),
    *("signal_lead_s", "max_crashes", "snapshot_mb", "modules", "setup", "container"),
    *("srun_args", "additional_parameters"),
)


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
    crop = parse_protocol(data.protocol).crop
    if crop != data.image_size and is_named("data.image_size") and not is_named("data.protocol"):
        yield (
            f"data.image_size={data.image_size}, and data.protocol={data.protocol} judges at "
            f"{crop} pixels. Give data.protocol too if that is not meant"
        )
    if schedule.name == "step" and not (schedule.drop_epochs or schedule.drop_every_epochs):
        yield (
            "recipe.schedule.name=step has no drops, so the rate stays the same. Give "
            "recipe.schedule.drop_epochs or drop_every_epochs"
        )
    if config.recipe.probe and config.init_from is None:
        yield (
            "recipe.probe=true trains the head of a network whose other weights are random and "
            "stay so. Give init_from"
        )


def _without_effect(config: Config) -> Iterator[tuple[str, str]]:
    """Yield each key that has no effect in this config, and why."""
    for applies, keys, why in (*_of_recipe(config), *_of_crops(config), *_of_launch(config)):
        yield from ((key, why) for key in keys if applies)


def _of_recipe(config: Config) -> Iterator[tuple[bool, Sequence[str], str]]:
    recipe, schedule = config.recipe, config.recipe.schedule
    mixes = recipe.mix.mixup_alpha or recipe.mix.cutmix_alpha
    yield not mixes, ["recipe.mix.prob"], "mixup_alpha and cutmix_alpha are 0"
    no_policy = recipe.distort.policy is None
    yield no_policy, ["recipe.distort.policy_options"], "recipe.distort.policy is null"
    yield recipe.objective != "bce", ["recipe.bce_threshold"], "recipe.objective is not bce"
    yield recipe.objective == "own", ["recipe.label_smoothing"], "recipe.objective is own"
    drops = [f"recipe.schedule.drop_{name}" for name in ("epochs", "every_epochs", "factor")]
    yield schedule.name != "step", drops, f"recipe.schedule.name is {schedule.name}"
    is_flat = schedule.name in ("step", "constant")
    yield is_flat, ["recipe.schedule.final_share"], f"recipe.schedule.name is {schedule.name}"
    if schedule.name == "step" and schedule.drop_epochs:
        yield True, ["recipe.schedule.drop_every_epochs"], "recipe.schedule.drop_epochs is given"
    yield recipe.balanced, ["data.block_size"], "recipe.balanced is true"


def _of_crops(config: Config) -> Iterator[tuple[bool, Sequence[str], str]]:
    is_now = config.data.augment.kind
    for kind, names in (
        ("padded_crop", ("padding",)),
        ("scaled_crop", ("sides", "central_square")),
        ("random_resized_crop", ("scale", "ratio")),
    ):
        keys = [f"data.augment.{name}" for name in names]
        yield is_now != kind, keys, f"data.augment.kind is {is_now}"


def _of_launch(config: Config) -> Iterator[tuple[bool, Sequence[str], str]]:
    is_local = config.launcher.name == "local"
    asked = [f"cluster.{name}" for name in _OF_SLURM]
    here = "launcher.num_procs says how many ranks this machine starts; `tahoe submit` asks Slurm"
    yield is_local, asked, here
    there = "Slurm starts the ranks: cluster.nodes, tasks_per_node and gpus_per_node say how many"
    yield not is_local, ["launcher.num_procs", "launcher.stop_grace_s"], there
    store = ["tracking.uri", "tracking.experiment"]
    yield not config.tracking.enabled, store, "tracking is none"
