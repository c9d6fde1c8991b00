"""Phases are a function of the step; a run with phases resumes with the same bits."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cli_runner import Tahoe
from plans import plan
from run_results import weights
from torch import nn

from orchestrator.config.parse import ConfigError
from orchestrator.config.recipe import Phase
from orchestrator.config.strategy import Strategy
from orchestrator.run.rundir import RunDir, read_json_lines
from orchestrator.training.distributed.world import World
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.step.phases import Phases
from orchestrator.training.strategy.ddp import Ddp

PLAN = plan()
STAGES = (
    Phase(end_epoch=0.5, stage=0, momentum=0.5),
    Phase(end_epoch=1.0, stage=0, momentum=0.9),
    Phase(end_epoch=2.0, stage=1, lr_scale=0.1),
    Phase(end_epoch=3.0, stage=2),
)


class Staged(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.stage, self.entered = 0, list[int]()

    def enter(self, stage: int) -> None:
        self.entered.append(stage)


def state_of(network: nn.Module) -> TrainState:
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.7)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    strategy = Ddp(World(0, 0, 1, torch.device("cpu"), dist.group.WORLD), Strategy())
    return TrainState(network, copy.deepcopy(network), optimizer, scaler, strategy)


def begun(stages: Phases, state: TrainState, step: int) -> tuple[int, float, float]:
    (group,) = state.optimizer.param_groups
    group["lr"] = 1.0  # as the schedule does before each step
    stages.prepare_step(step)
    network: Any = state.model
    ema: Any = state.ema
    assert ema.stage == network.stage
    return network.stage, group["lr"], group["momentum"]


def test_phases_set_stage_rate_and_momentum_by_step() -> None:
    state = state_of(Staged())
    stages = Phases(state, STAGES, PLAN)
    steps = [begun(stages, state, step) for step in range(40)]
    expected = [(0, 1.0, 0.5)] * 5 + [(0, 1.0, 0.9)] * 5 + [(1, 0.1, 0.9)] * 10
    assert steps == [*expected, *[(2, 1.0, 0.9)] * 20]
    network: Any = state.model
    assert network.entered == [0, 1, 2]


@pytest.mark.parametrize(
    ("step", "stage", "entered"), [(9, 0, []), (10, 1, [1]), (11, 1, []), (20, 2, [2]), (35, 2, [])]
)
def test_enter_is_called_at_the_first_step_of_a_stage_only(
    step: int, stage: int, entered: list[int]
) -> None:
    state = state_of(Staged())
    stages = Phases(state, STAGES, PLAN)
    stages.set_phase(step - 1)
    assert begun(stages, state, step)[0] == stage
    network: Any = state.model
    assert network.entered == entered


def test_phases_scale_rates_of_a_model_without_stages() -> None:
    state = state_of(nn.Linear(1, 1))
    intervals = (Phase(end_epoch=1.0, stage=0), Phase(end_epoch=2.0, stage=0, lr_scale=0.1))
    stages, rates = Phases(state, intervals, PLAN), []
    (group,) = state.optimizer.param_groups
    for step in range(20):
        group["lr"] = 1.0
        stages.prepare_step(step)
        rates.append(group["lr"])
    assert rates == [1.0] * 10 + [0.1] * 10
    assert not hasattr(state.model, "stage")


def test_single_phase_sets_its_stage() -> None:
    state = state_of(Staged())
    Phases(state, (Phase(end_epoch=1.0, stage=4),), PLAN).prepare_step(0)
    network: Any = state.model
    assert (network.stage, network.entered) == (4, [4])


def test_phase_momentum_needs_an_optimizer_with_momentum() -> None:
    state = state_of(Staged())
    state.optimizer = torch.optim.AdamW(state.model.parameters())
    with pytest.raises(ConfigError, match="momentum"):
        Phases(state, STAGES, PLAN)


def test_several_stages_need_a_model_with_stages() -> None:
    with pytest.raises(ConfigError) as error:
        Phases(state_of(nn.Linear(1, 1)), STAGES, PLAN)
    assert error.value.value == STAGES
    Phases(state_of(nn.Linear(1, 1)), (), PLAN).prepare_step(0)


RUN = (
    *("model=autoencoder_2006", "recipe=autoencoder_2006", "+model.kwargs.hidden=[40,20,5]"),
    *("data.mean=[0.0]", "data.std=[1.0]", "launcher.nproc_per_node=2", "tracking=none"),
    *("recipe.epochs=null", "recipe.global_batch_size=96"),
    "recipe.phases=[{end_epoch:0.5,stage:0},{end_epoch:1,stage:1},{end_epoch:1.5,stage:2},{end_epoch:9,stage:3}]",
    *("recipe.ema_decay=0.9", "logging.every_steps=1", "evaluate.every_epochs=0.5"),
)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_run_with_phases_resumes_with_the_same_bits(tmp_path: Path, digits: Path) -> None:
    """14 steps an epoch; stopped where a stage ends, in the middle of one, and at the unrolling."""
    tahoe, data = Tahoe(tmp_path), f"data.url='{digits}'"
    tahoe("train", *RUN, data, "run_dir=whole", "recipe.steps=40")
    tahoe("train", *RUN, data, "run_dir=parts", "recipe.steps=7")
    for steps in (17, 21, 40):
        tahoe("resume", "parts", f"recipe.steps={steps}")
    whole, parts = RunDir(tmp_path / "whole"), RunDir(tmp_path / "parts")
    assert weights(parts, 40) == weights(whole, 40)
    figures = [line["metrics"] for line in read_json_lines(whole.metrics_file)]
    assert [line["val/loss"] for line in figures if "val/loss" in line]
    assert not any("val/top1" in line for line in figures)
    listed = tahoe("ckpt", "ls", "whole").stdout
    assert "best" in listed
