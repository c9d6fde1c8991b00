"""What was given on the command line and has no effect is said."""

import pytest

from orchestrator.config.schema import Config
from orchestrator.launch.checks.unused_keys import unused_keys, warn_unused_keys
from orchestrator.launch.compose import compose


def told(*arguments: str) -> list[str]:
    (composed,) = compose(arguments)
    return [line.split()[0] for line in unused_keys(composed.config, composed.overrides)]


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        ([], []),
        (["recipe.mix.prob=0.5"], ["recipe.mix.prob"]),
        (["recipe.mix.prob=0.5", "recipe.mix.cutmix_alpha=1"], []),
        (["+recipe.distort.policy_options.magnitude=3"], ["recipe.distort.policy_options"]),
        (["recipe.bce_threshold=0.2"], ["recipe.bce_threshold"]),
        (["recipe.bce_threshold=0.2", "recipe.objective=bce"], []),
        (["recipe.schedule.drop_epochs=[3]"], ["recipe.schedule.drop_epochs"]),
        (["recipe.schedule.drop_epochs=[3]", "recipe.schedule.name=step"], []),
        (["recipe.schedule.name=step"], ["recipe.schedule.name=step"]),
        (["recipe.schedule.name=constant", "recipe.schedule.final_share=0.1"],
         ["recipe.schedule.final_share"]),
        (["data.augment.sides=[40,40]"], ["data.augment.sides"]),
        (["data.augment.sides=[40,40]", "data.augment.kind=scaled_crop"], []),
        (["data.augment.kind=random_resized_crop"], []),  # the padding is the group's
        (["data.augment.kind=random_resized_crop", "data.augment.padding=1"],
         ["data.augment.padding"]),
        (["data.image_size=64"], ["data.image_size=64,"]),
        (["data.image_size=64", "data.protocol=center-64-of-64"], []),
        (["data=mnist"], []),
        (["tracking=none", "tracking.experiment=a"], ["tracking.experiment"]),
        (["cluster.nodes=2"], ["cluster.nodes"]),
        (["cluster.nodes=2", "launcher=slurm"], []),
        (["launcher.num_procs=2", "launcher=slurm"], ["launcher.num_procs"]),
        (["recipe.probe=true"], ["recipe.probe=true"]),
        (["recipe.probe=true", "init_from=a"], []),
    ],
)  # fmt: skip
def test_a_key_that_does_nothing_is_named(arguments: list[str], keys: list[str]) -> None:
    assert told(*arguments) == keys


def test_points_of_a_sweep_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    configs: list[tuple[Config, tuple[str, ...]]] = [
        (point.config, point.overrides)
        for point in compose(["-m", "recipe.mix.prob=0.25", "seed=1,2"])
    ]
    for config, overrides in configs:
        warn_unused_keys(config, overrides)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("recipe.mix.prob has no effect") == 1
