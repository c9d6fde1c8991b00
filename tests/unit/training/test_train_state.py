"""A checkpoint's files hold the whole state, and load without Tahoe."""

import copy
import io
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

from orchestrator.checkpoint.safetensors_io import (
    read_safetensors,
    unique_tensors,
    write_safetensors,
)
from orchestrator.checkpoint.store import CheckpointError, Files
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.state.host_snapshot import HostSnapshot
from orchestrator.training.state.restore import restore
from orchestrator.training.state.train_state import TrainState


class Tied(nn.Module):
    """A linear autoencoder whose two layers share one weight, channels-last weights beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(8, 8)
        self.decode = nn.Linear(8, 8)
        self.decode.weight = self.encode.weight
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("empty", torch.empty(0))


class Masked(nn.Sequential):
    """A network with a buffer that no checkpoint has, infinite in places."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1), persistent=False)


def trained(world: World, config: Config, num_steps: int) -> TrainState:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    state = TrainState.create(network, config, world)
    step_on(state, config, first=1, last=num_steps)
    return state


def step_on(state: TrainState, config: Config, *, first: int, last: int) -> None:
    for step in range(first, last + 1):
        torch.manual_seed(step)
        state.model(torch.randn(5, 1, 8, 8)).square().mean().backward()
        state.update()
        if config.recipe.ema_decay:
            state.update_ema(step, config.recipe.ema_decay)


def to_safetensors(network: nn.Module) -> bytes:
    file = io.BytesIO()
    tensors, aliases = unique_tensors(network)
    copies = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_safetensors(file, copies, aliases)
    return file.getvalue()


def to_parts(state: TrainState, step: int, directory: Path) -> Files:
    """Return the files of a checkpoint."""
    parts = {}
    for name, write in HostSnapshot().capture(state, step).items():
        parts[name] = directory / name
        with parts[name].open("wb") as file:
            write(file)
    return parts


def test_tied_weights_are_stored_once_and_restored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, other = Tied(), Tied()
    data, file = to_safetensors(network), tmp_path / "model.safetensors"
    file.write_bytes(data)
    stored = safetensors.torch.load(data)
    assert sum(name.endswith("code.weight") for name in stored) == 1
    read_safetensors(other, file)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    safetensors.torch.load_model(Tied(), file)  # the library's own way


def test_weights_load_into_plain_timm_model() -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=10, in_chans=1)
    network = network.to(memory_format=torch.channels_last)
    plain = timm.create_model("resnet18", num_classes=10, in_chans=1)
    plain.load_state_dict(safetensors.torch.load(to_safetensors(network)), strict=True)
    images = torch.randn(2, 1, 32, 32)
    assert torch.allclose(network.eval()(images), plain.eval()(images), atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_restored_state_continues_with_the_same_bits(
    world: World, config: Config, name: str, tmp_path: Path
) -> None:
    config = changed(config, name=name, ema_decay=0.9)
    straight = trained(world, config, 10)
    stopped = trained(world, config, 6)
    resumed = trained(world, config, 0)
    assert restore(resumed, to_parts(stopped, 6, tmp_path), world) == 6
    step_on(resumed, config, first=7, last=10)
    for ours, theirs in ((resumed.model, straight.model), (resumed.ema, straight.ema)):
        assert ours is not None
        assert theirs is not None
        for key, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], tensor), key


def test_ema_moves_by_its_decay(world: World, config: Config) -> None:
    config = changed(config, ema_decay=0.5)
    state = trained(world, config, 0)
    assert state.ema is not None
    assert state.eval_model is state.ema
    expected = copy.deepcopy(list(state.ema.parameters()))
    step_on(state, config, first=20, last=20)
    for before, now, average in zip(
        expected, state.model.parameters(), state.ema.parameters(), strict=True
    ):
        assert torch.allclose(average, (before + now) / 2, atol=1e-7)


def test_ema_of_weights_and_batch_norm_statistics_equals_timms(
    world: World, config: Config
) -> None:
    """Weights and floating buffers move, counts are copied, and a constant mask stays one."""
    config = changed(config, ema_decay=0.9)
    torch.manual_seed(0)
    network = Masked()
    state, reference = TrainState.create(network, config, world), ModelEmaV3(network, decay=0.9)
    for step in range(90, 95):  # when the average has its full weight
        torch.manual_seed(step)
        state.model(torch.randn(5, 1, 8, 8) + 3).square().mean().backward()
        state.update()
        state.update_ema(step, 0.9)
        reference.update(network)
    assert state.ema is not None
    ours, theirs, raw = (n.state_dict() for n in (state.ema, reference.module, network))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-7) for name in theirs)
    assert ours["1.num_batches_tracked"] == 5
    assert not torch.allclose(ours["1.running_mean"], raw["1.running_mean"], atol=1e-3)
    assert torch.equal(state.ema.mask, network.mask)  # type: ignore[arg-type]


def test_checkpoint_of_another_model_is_refused(
    world: World, config: Config, tmp_path: Path
) -> None:
    parts = to_parts(trained(world, config, 1), 1, tmp_path)
    other = TrainState.create(nn.Linear(3, 3), config, world)
    with pytest.raises(CheckpointError, match="does not fit"):
        restore(other, parts, world)


def test_code_in_a_pickle_is_not_executed(world: World, config: Config, tmp_path: Path) -> None:
    """optimizer.pt is read for its tensors only; code in it is refused, not run."""
    state = trained(world, config, 1)
    parts = to_parts(state, 1, tmp_path)
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (canary,))

    torch.save({"state": Hostile()}, parts["optimizer.pt"])
    with pytest.raises(CheckpointError, match="does not fit"):
        restore(state, parts, world)
    assert not canary.exists()


def test_unknown_optimizer_lists_similar_names(world: World, config: Config) -> None:
    with pytest.raises(ConfigError) as error:
        TrainState.create(nn.Linear(2, 2), changed(config, name="adamww"), world)
    assert error.value.value == "adamww"
    assert "adamw," in error.value.hint


def changed(config: Config, ema_decay: float | None = None, **optimizer: object) -> Config:
    import dataclasses

    slots = dataclasses.replace(config.recipe.optimizer, **optimizer)  # type: ignore[arg-type]
    recipe = dataclasses.replace(config.recipe, optimizer=slots, ema_decay=ema_decay)
    return dataclasses.replace(config, recipe=recipe)
