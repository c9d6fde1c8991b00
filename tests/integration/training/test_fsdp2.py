"""FSDP2 trains as DDP does, on slices; a checkpoint does not know it."""

from pathlib import Path
from typing import Any

import fsdp_ranks
import pytest
import timm
import torch
from cli_runner import Tahoe
from ranks import run_on_ranks
from run_results import figures, weights
from strategy_runs import train_straight_and_changing
from torch import nn

from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.state.train_state import TrainState

# Those that need other hardware, a graph of the gradients, or minutes to compile.
NOT_HERE = ("bnb", "fused", "adahessian", "kron")
RECIPE: dict[str, Any] = {
    "recipe.optimizer.name": "momentum",
    "recipe.optimizer.lr": 0.1,
    "recipe.optimizer.layer_decay": 0.8,
    "recipe.clip_grad_norm": 0.5,
    "recipe.ema_decay": 0.5,
}
_DECAY = "recipe.optimizer.layer_decay"
ADAMW = RECIPE | {"recipe.optimizer.name": "adamw", "recipe.optimizer.lr": 0.001}


def test_one_rank_trains_as_ddp(config: Config, world: World) -> None:
    fsdp_ranks.trains_as_ddp(world, config, ["vit"], 1e-5, RECIPE)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_trains_as_ddp(config: Config, num_ranks: int) -> None:
    arguments = (config, ["vit", "conv"], 1e-5, RECIPE)
    run_on_ranks(fsdp_ranks.trains_as_ddp, num_ranks, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "atol"),
    [
        ({"recipe.precision": "bf16"}, 1e-6),
        ({"recipe.precision": "fp16"}, 1e-4),  # infinite gradients of the first steps are skipped
        ({"recipe.agc_clip_factor": 0.01, "recipe.clip_grad_norm": None}, 1e-5),
    ],
)
def test_precisions_and_adaptive_clipping_are_ddps(
    config: Config, changes: dict[str, Any], atol: float
) -> None:
    run_on_ranks(fsdp_ranks.trains_as_ddp, 2, config, ["vit"], atol, RECIPE | changes)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}),
        ("beit_base_patch16_224", {"depth": 2, "embed_dim": 24, "num_heads": 2}),
        ("cait_xxs24_224", {"depth": 2, "embed_dim": 24, "num_heads": 2}),
    ],
)
def test_blocks_with_scales_of_their_own_train_in_bf16(
    config: Config, world: World, name: str, kwargs: dict[str, Any]
) -> None:
    """Their own vectors are gathered with their matrices, not twice."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs)
    config = config.replace({"strategy.name": "fsdp2", "recipe.precision": "bf16"})
    state = TrainState.create(model, config, world)
    before = [state.strategy.local(weight).clone() for weight in model.parameters()]
    size = model.default_cfg["input_size"][-1]
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = state.model(torch.randn(2, 3, size, size)).square().mean()
        loss.backward()
        state.update()
    after = [state.strategy.local(weight) for weight in model.parameters()]
    assert all(torch.isfinite(weight).all() for weight in after)
    assert sum(not torch.equal(*pair) for pair in zip(before, after, strict=True)) > len(after) / 2


@pytest.mark.slow
def test_a_rank_keeps_slices_alone(config: Config) -> None:
    run_on_ranks(fsdp_ranks.keeps_slices, 3, config.replace(ADAMW))


@pytest.mark.slow
def test_checkpoints_go_from_strategy_to_strategy(config: Config, tmp_path: Path) -> None:
    run_on_ranks(fsdp_ranks.hands_over, 2, config.replace(ADAMW), tmp_path)


@pytest.mark.slow
def test_resumed_state_continues_with_the_same_bits(config: Config, tmp_path: Path) -> None:
    run_on_ranks(fsdp_ranks.resumes_with_the_same_bits, 3, config.replace(ADAMW), tmp_path)


@pytest.mark.slow
def test_probes_start_from_weights_as_with_ddp(config: Config, tmp_path: Path) -> None:
    arguments = (config.replace(RECIPE | {_DECAY: None}), tmp_path / "initial.safetensors")
    run_on_ranks(fsdp_ranks.probes_from_weights, 2, *arguments)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_optimizers_update_slices_as_ddp_updates_parameters(config: Config) -> None:
    names = [str(n) for n in timm.optim.list_optimizers() if not str(n).startswith(NOT_HERE)]
    assert len(names) > 60
    run_on_ranks(fsdp_ranks.optimizers_update_as_ddp, 2, config, [*names, "caffe_sgd"])


class _Constrained(nn.Linear):
    def after_step(self) -> None:
        self.weight.clamp_(-1, 1)


class _Scaled(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.scale = nn.Parameter(torch.ones(()))


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(fsdp_ranks.Block(), fsdp_ranks.Block())
        self.blocks[1].conv2 = self.blocks[0].conv2


@pytest.mark.parametrize(
    ("network", "optimizer"),
    [
        *((_Constrained(3, 3), "adamw"), (_Scaled(), "adamw"), (_Shared(), "adamw")),
        (nn.Linear(3, 3), "adafactor"),
    ],
)
def test_what_cannot_be_sliced_is_refused(
    config: Config, world: World, network: nn.Module, optimizer: str
) -> None:
    changes = {"strategy.name": "fsdp2", "recipe.optimizer.name": optimizer}
    with pytest.raises(ConfigError) as error:
        TrainState.create(network, config.replace(changes), world)
    assert error.value.value == "fsdp2"
    assert "strategy=ddp" in str(error.value.hint)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_runs_change_to_fsdp2_and_back(tahoe: Tahoe, digits: Path) -> None:
    """From the command line, with an odd number of batches in evaluations, and predictions."""

    odd = "evaluate.batch_size=128"  # of 359 images: three batches
    straight, changing = train_straight_and_changing(tahoe, digits, ("fsdp2", "ddp_zero1"), odd)
    ours, theirs = figures(changing, "val/loss"), figures(straight, "val/loss")
    assert len(theirs) >= 4
    for step, (loss,) in theirs.items():
        assert [*ours[step]] == pytest.approx([loss], rel=1e-3)
    assert changing.path.joinpath("predictions.npz").exists()
    assert weights(changing, 24).keys() == weights(straight, 24).keys()
