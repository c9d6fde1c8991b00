"""What each rank does in the tests of optimizers that are spread over the ranks."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from orchestrator.checkpoint.store import CheckpointError, CheckpointStore
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.state.host_snapshot import HostSnapshot, send_to_rank0
from orchestrator.training.state.restore import restore
from orchestrator.training.state.train_state import TrainState


def with_optimizer(config: Config, name: str, strategy: str, **options: object) -> Config:
    slots = replace(config.recipe.optimizer, name=name, kwargs=options)
    recipe = replace(config.recipe, optimizer=slots)
    return replace(config, recipe=recipe).replace({"strategy.name": strategy})


def make_network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def step_on(state: TrainState, first: int, last: int) -> None:
    """Do some steps, with the same gradients on every rank."""
    for step in range(first, last + 1):
        generator = torch.Generator().manual_seed(step)
        for param in state.model.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(
                memory_format=torch.channels_last if param.dim() == 4 else torch.contiguous_format
            )
        state.update()


def updates_alike(world: World, config: Config, names: list[tuple[str, dict[str, object]]]) -> None:
    """Every optimizer moves the weights by the same bits, whether it is spread or not."""
    differ = []
    for name, options in names:
        states = [
            TrainState.create(
                make_network(), with_optimizer(config, name, strategy, **options), world
            )
            for strategy in ("ddp", "ddp_zero1")
        ]
        for state in states:
            torch.manual_seed(0)
            step_on(state, 1, 3)
        pairs = zip(*(state.model.parameters() for state in states), strict=True)
        if not all(torch.equal(one, other) for one, other in pairs):
            differ.append(name)
    assert not differ, differ


def shares_and_hands_over(world: World, config: Config, directory: Path) -> None:
    """Each rank keeps a share of the slots; a checkpoint has all, and either strategy takes it."""
    spread, whole = (
        TrainState.create(make_network(), with_optimizer(config, "adamw", strategy), world)
        for strategy in ("ddp_zero1", "ddp")
    )
    step_on(spread, 1, 2)
    step_on(whole, 1, 2)
    mine = spread.optimizer.state_dict()["state"]
    num_kept = sum(slots["exp_avg"].numel() for slots in mine.values())
    sizes = [param.numel() for param in spread.model.parameters()]
    assert num_kept <= sum(sizes) / world.size + max(sizes)
    assert sum(world.gather_objects(num_kept)) == sum(sizes)

    # Parameter 0 has never had a gradient where it is frozen: no rank has slots of it.
    store = CheckpointStore(str(directory))
    if not world.is_main:
        send_to_rank0(spread)
    else:
        taken = HostSnapshot().capture(spread, 2)
        store.save(2, taken, {})
        with store.open(2) as parts:
            slots = torch.load(parts["optimizer.pt"], weights_only=True)["state"]
        for index, expected in whole.optimizer.state_dict()["state"].items():
            for name, value in expected.items():
                assert torch.equal(slots[index][name], value), (index, name)

    step_on(whole, 3, 4)
    for strategy in ("ddp", "ddp_zero1"):
        other = TrainState.create(
            copy.deepcopy(make_network()).to(torch.float32),
            with_optimizer(config, "adamw", strategy),
            world,
        )
        with store.open(2) if world.is_main else nullcontext() as parts:
            assert restore(other, parts, world) == 2
        has_all = len(other.optimizer.state_dict()["state"]) == len(sizes)
        assert has_all == (strategy == "ddp")
        step_on(other, 3, 4)
        for ours, theirs in zip(other.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def refuses_alike(world: World, config: Config, directory: Path) -> None:
    """A checkpoint that does not fit is an error on every rank, not only where it is read."""
    state = TrainState.create(make_network(), config, world)
    said, parts = "", {name: directory / name for name in ("state.json", "model.safetensors")}
    if world.is_main:
        parts["state.json"].write_text('{"step": 1, "scaler": {}}')
        parts["model.safetensors"].write_bytes(bytes(100))
    try:
        restore(state, parts if world.is_main else None, world)
    except CheckpointError as error:
        said = str(error)
    assert "does not fit" in said
