"""Keys of the command line without effect give a warning."""

import pytest

from orchestrator.config.schema import Config
from orchestrator.launch.checks.unused_keys import unused_keys, warn_unused_keys
from orchestrator.launch.compose import compose


def unused(*arguments: str) -> list[str]:
    (composed,) = compose(arguments)
    return [line.split()[0] for line in unused_keys(composed.config, composed.overrides)]


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        ([], []),
        (["profile=true", "profile.steps=[5,6]"], []),
        (["profile.steps=[5,6]", "profile=false"], ["profile.steps"]),
        (["recipe.mixup.prob=0.5"], ["recipe.mixup.prob"]),
        (["recipe.mixup.prob=0.5", "recipe.mixup.cutmix_alpha=1"], []),
        (["+recipe.augment.auto_augment_kwargs.magnitude=3"],
         ["recipe.augment.auto_augment_kwargs"]),
        (["recipe.bce_target_threshold=0.2", "recipe.bce_pos_weight=2", "evaluate.threshold=0.4"],
         ["recipe.bce_target_threshold", "recipe.bce_pos_weight", "evaluate.threshold"]),
        (["recipe.bce_target_threshold=0.2", "recipe.loss=bce", "evaluate.threshold=0.4",
          "recipe.bce_pos_weight=auto", "recipe.bce_max_pos_weight=9"], []),
        (["recipe.schedule.decay_milestones=[3]"], ["recipe.schedule.decay_milestones"]),
        (["recipe.schedule.decay_milestones=[3]", "recipe.schedule.name=multistep"], []),
        (["recipe.schedule.name=multistep", "recipe.loss=bce", "recipe.bce_max_pos_weight=9"],
         ["recipe.bce_max_pos_weight", "recipe.schedule.name=multistep"]),
        (["recipe.schedule.name=constant", "recipe.schedule.min_lr_factor=0.1"],
         ["recipe.schedule.min_lr_factor"]),
        (["data.crop.resize_range=[40,40]"], ["data.crop.resize_range"]),
        (["data.crop.resize_range=[40,40]", "data.crop.mode=resize_crop"], []),
        (["data.crop.mode=random_resized_crop"], []),  # the padding is the group's
        (["data.crop.mode=random_resized_crop", "data.crop.padding=1"],
         ["data.crop.padding"]),
        (["data.image_size=64"], ["data.image_size=64,"]),
        (["data.image_size=64", "data.eval_protocol=center-64-of-64"], []),
        (["data=mnist"], []),
        (["tracking=none", "tracking.experiment=a"], ["tracking.experiment"]),
        (["slurm.nodes=2"], ["slurm.nodes"]),
        (["slurm.nodes=2", "launcher=slurm"], []),
        (["launcher.nproc_per_node=2", "launcher=slurm"], ["launcher.nproc_per_node"]),
        (["runtime.max_images_per_device=8"], []),
        (["runtime.max_images_per_device=8", "recipe.num_micro_batches=4"],
         ["runtime.max_images_per_device"]),
        (["strategy.bucket_cap_mb=4", "strategy.comm_hook=bf16_compress",
          "strategy.start_powersgd_step=4"],
         ["strategy.bucket_cap_mb", "strategy.comm_hook", "strategy.start_powersgd_step"]),
        (["strategy.bucket_cap_mb=4", "launcher.nproc_per_node=2", "strategy=fsdp2"],
         ["strategy.bucket_cap_mb"]),
        (["recipe.linear_probe=true"], ["recipe.linear_probe=true"]),
        (["recipe.linear_probe=true", "init_from=a"], []),
        (["runtime.deterministic=false", "runtime.device=cpu"], ["runtime.deterministic"]),
        (["recipe.linear_probe=true", "init_from=a", "recipe.grad_checkpointing=true"],
         ["recipe.grad_checkpointing"]),
    ],
)  # fmt: skip
def test_a_key_without_effect_gives_a_warning(arguments: list[str], keys: list[str]) -> None:
    assert unused(*arguments) == keys


def test_points_of_a_sweep_give_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    configs: list[tuple[Config, tuple[str, ...]]] = [
        (point.config, point.overrides)
        for point in compose(["-m", "recipe.mixup.prob=0.25", "seed=1,2"])
    ]
    for config, overrides in configs:
        warn_unused_keys(config, overrides)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("recipe.mixup.prob has no effect") == 1
