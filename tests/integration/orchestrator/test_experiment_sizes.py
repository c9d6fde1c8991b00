"""Every experiment runs on 1 to 64 ranks as it is: the dry-run matrix."""

from pathlib import Path

import numpy as np
import pytest
from cli_runner import Tahoe

import conf
from data_sharding.format.manifest import Manifest, ShardInfo, write_manifest
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.launch.compose import compose
from orchestrator.run.plan import Plan, make_plan

ROOT = Path(conf.__file__).parent / "experiment"
EXPERIMENTS = [
    file.relative_to(ROOT).with_suffix("").as_posix() for file in sorted(ROOT.rglob("*.yaml"))
]
NUM_RANKS = (1, 2, 4, 8, 16, 32, 64)
# LeCun et al. updated the weights after each image, which more ranks than one cannot divide.
OF_ONE_IMAGE = "lenet5_1998"
DATA = {  # images for training, for validation, and classes
    "imagenet": (1_281_167, 50_000, 1000),
    "cifar10": (50_000, 10_000, 10),
    "mnist": (60_000, 10_000, 10),
    "digits": (1438, 359, 10),
}


def manifests(name: str) -> tuple[Manifest, Manifest]:
    *numbers, num_classes = DATA[name]
    classes = tuple(f"n{number:08}" for number in range(num_classes))
    train, val = (
        Manifest(classes, (ShardInfo("shard-000000.tar", number, 10240, "0" * 64),), {})
        for number in numbers
    )
    return train, val


@pytest.fixture(scope="module")
def configs() -> dict[str, Config]:
    points = compose(["-m", f"experiment={','.join(EXPERIMENTS)}", "data.url=anywhere"])
    return dict(zip(EXPERIMENTS, (point.config for point in points), strict=True))


def on_ranks(config: Config, num_ranks: int) -> list[Config]:
    """Return a config for this machine, and for nodes of Slurm with up to 8 GPUs."""
    per_node = min(num_ranks, 8)
    nodes = {"slurm.nodes": num_ranks // per_node, "slurm.gpus_per_node": per_node}
    return [
        config.replace({"launcher.name": "local", "launcher.nproc_per_node": num_ranks}),
        config.replace({"launcher.name": "slurm", **nodes}),
    ]


def assert_ranks_compute_each_row_once(plan: Plan) -> None:
    counts = np.zeros((plan.num_micro_batches, plan.micro_batch_size), int)
    for rank in range(plan.world_size):
        for _, micro, part in plan.micro_batches(rank, plan.num_steps - 1):
            counts[micro, part.rows(plan.micro_batch_size)] += 1
    assert (counts == 1).all()


@pytest.mark.slow
def test_every_experiment_runs_on_any_number_of_ranks(configs: dict[str, Config]) -> None:
    for name in EXPERIMENTS:
        if name == OF_ONE_IMAGE:
            continue
        plans = [
            make_plan(config, config.world_size, *manifests(config.data.name))
            for num_ranks in NUM_RANKS
            for config in on_ranks(configs[name], num_ranks)
        ]
        assert [plan.world_size for plan in plans] == [n for n in NUM_RANKS for _ in range(2)]
        for plan in plans:
            assert_ranks_compute_each_row_once(plan)
        # The steps are the same on any ranks: an experiment's micro-batches are not `auto`.
        steps = ("global_batch_size", "num_micro_batches", "num_lanes", "num_steps")
        assert len({tuple(getattr(plan, key) for key in steps) for plan in plans}) == 1, name


@pytest.mark.slow
def test_lenet5_of_one_image_a_step_runs_on_one_rank(configs: dict[str, Config]) -> None:
    train, val = manifests("mnist")
    for config in on_ranks(configs[OF_ONE_IMAGE], 1):
        assert make_plan(config, 1, train, val).micro_batch_size == 1
    for num_ranks in NUM_RANKS[1:]:
        local, slurm = on_ranks(configs[OF_ONE_IMAGE], num_ranks)
        with pytest.raises(ConfigError) as refused:
            make_plan(local, num_ranks, train, val)
        assert "launcher.nproc_per_node=1   " in refused.value.hint
        with pytest.raises(ConfigError) as refused:
            make_plan(slurm, num_ranks, train, val)
        assert f"recipe.global_batch_size={num_ranks}   " in refused.value.hint


@pytest.mark.slow
def test_two_nodes_of_eight_gpus_share_the_micro_batches_of_resnet50(tahoe: Tahoe) -> None:
    for split, manifest in zip(("train", "val"), manifests("imagenet"), strict=True):
        write_manifest(str(tahoe.cwd / "set"), split, manifest)
    size = ("slurm=default", "slurm.nodes=2", "slurm.gpus_per_node=8")
    submit = ("submit", "experiment=resnet50_2015", "data.url=set", *size, "--dry-run")
    printed = tahoe(*submit).stdout
    assert "# global batch 256 = 8 micro-batches of 32, each shared by 2 of 16 ranks, " in printed
    assert {"#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8"} <= {*printed.splitlines()}
