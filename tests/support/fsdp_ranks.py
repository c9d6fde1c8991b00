"""What each rank does in the tests of FSDP2, beside DDP on the same ranks."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.state.host_snapshot import HostSnapshot, send_to_rank0
from orchestrator.training.state.restore import restore
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.strategy.param_state import large_tensors
from orchestrator.training.task.linear_probe import freeze_backbone

SIZES: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 30, "num_heads": 3}
STRATEGIES = ("ddp", "fsdp2", "ddp_zero1", "fsdp2", "ddp")


class Block(nn.Module):
    """A residual block of a tiny convolutional network; no size divides by the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = (
            nn.Conv2d(7, 7, 3),
            nn.BatchNorm2d(7),
            nn.Conv2d(7, 7, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(torch.tanh(self.norm(self.conv1(x))))
        return out.view(out.shape)  # as Swin's blocks, whose output may be changed in place


def make_network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "vit":
        return timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=5, **SIZES)
    if kind == "plain":  # without weights whose gradients are zero but for rounding
        conv = nn.Conv2d(3, 7, 3, stride=2)
        return nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(343, 5))
    blocks = nn.Sequential(Block(), nn.ReLU(inplace=True), Block(), nn.ReLU(inplace=True))
    return nn.Sequential(nn.Conv2d(3, 7, 3, stride=2), blocks, nn.Flatten(), nn.Linear(63, 5))


class Run:
    """A model under a strategy, trained on batches that differ between the ranks."""

    def __init__(
        self, kind: str, config: Config, strategy: str, world: World, *, is_probe: bool = False
    ) -> None:
        self.world, self.config = world, config.replace({"strategy.name": strategy})
        network = make_network(kind)
        if is_probe:
            freeze_backbone(network, num_classes=5)
        self.state = TrainState.create(network, self.config, world)
        self.wrapped = self.state.strategy.wrap(self.state.model)

    def step(self, first: int, last: int, num_micros: int = 2) -> list[float]:
        """Do some steps of accumulated micro-batches; return the norms of the gradients."""
        norms, state, recipe = [], self.state, self.config.recipe
        precision = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        dtype = precision[recipe.precision]
        for step in range(first, last + 1):
            for micro in range(num_micros):
                seed = 100 * step + 10 * micro + self.world.rank
                generator = torch.Generator().manual_seed(seed)
                images = torch.randn(4, 3, 16, 16, generator=generator)
                labels = torch.randint(0, 5, (4,), generator=generator)
                with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                    loss = F.cross_entropy(self.wrapped(images).float(), labels) / num_micros
                is_last = micro == num_micros - 1
                with nullcontext() if is_last else state.strategy.accumulate(self.wrapped):
                    state.scaler.scale(loss).backward()
            state.scaler.unscale_(state.optimizer)
            norms.append(float(state.strategy.clip_gradients(state.model, recipe)))
            state.update()
            if recipe.ema_decay:
                state.update_ema(step, recipe.ema_decay)
        return norms

    def tensors(self) -> list[dict[str, Tensor]]:
        """Return the whole tensors of the model and the EMA, on rank 0."""
        gather = self.state.strategy.gather
        return [
            {name: gather(tensor).clone() for name, tensor in model.state_dict().items()}
            for model in self.state.models
        ]

    def save(self, store: CheckpointStore, step: int) -> None:
        if self.world.is_main:
            store.save(step, HostSnapshot().capture(self.state, step), {})
        else:
            send_to_rank0(self.state)

    def load(self, store: CheckpointStore, step: int) -> None:
        with store.open(step) if self.world.is_main else nullcontext() as files:
            assert restore(self.state, files, self.world) == step


def assert_close(ours: Run, theirs: Run, atol: float) -> None:
    pairs = zip(ours.tensors(), theirs.tensors(), strict=True)
    for one, other in pairs if ours.world.is_main else ():
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.allclose(tensor, other[name], rtol=0, atol=atol), name


def trains_as_ddp(
    world: World, config: Config, kinds: Sequence[str], atol: float, more: dict[str, Any]
) -> None:
    """Weights, EMA, buffers and norms of gradients are DDP's, within rounding."""
    for kind in kinds:
        changes = {name: value for name, value in more.items() if kind == "vit" or name != _DECAY}
        runs = [Run(kind, config.replace(changes), name, world) for name in ("fsdp2", "ddp")]
        before = runs[1].tensors()[0]
        ours, theirs = (run.step(1, 4) for run in runs)
        assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), rtol=10 * atol)
        assert_close(*runs, atol)
        after = runs[1].tensors()[0]
        assert any((after[name] - before[name]).abs().max() > 100 * atol for name in before)


_DECAY = "recipe.optimizer.layer_decay"


def keeps_slices(world: World, config: Config) -> None:
    """A rank has a part of weights, EMA and optimizer state, and none of it whole after a pass."""
    run = Run("vit", config, "fsdp2", world)
    run.step(1, 1)
    model = run.state.eval_model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, 16, 16))
    whole = sum(weight.numel() for weight in make_network("vit").parameters())
    states = run.state.optimizer.state_dict()["state"].values()
    slots: list[Any] = [tensor for state in states for tensor in large_tensors(state)]
    weights: list[Any] = [w for m in run.state.models for w in m.parameters()]
    assert all(isinstance(tensor, DTensor) for tensor in (*slots, *weights))
    num_kept = sum(tensor.to_local().numel() for tensor in (*slots, *weights))
    assert num_kept < 4 * whole * 1.3 / world.size


def hands_over(world: World, config: Config, directory: Path) -> None:
    """From one strategy to the next, every tensor of a checkpoint is restored as it was."""
    store = CheckpointStore(str(directory))
    run = Run("vit", config, STRATEGIES[0], world)
    for number, strategy in enumerate(STRATEGIES[1:], start=1):
        run.step(number, number)
        run.save(store, number)
        before, run = run, Run("vit", config, strategy, world)
        run.load(store, number)
        assert_close(run, before, atol=0)
        run.save(CheckpointStore(str(directory / "again")), number)
        if world.is_main:
            first, again = (
                CheckpointStore(str(path)).manifest(number).files
                for path in (directory, directory / "again")
            )
            assert first == again, strategy
    if world.is_main:  # and plain timm loads them
        with store.open(1) as files:
            make_network("vit").load_state_dict(
                timm.models.load_state_dict(str(files["model.safetensors"]))
            )


def resumes_with_the_same_bits(world: World, config: Config, directory: Path) -> None:
    store = CheckpointStore(str(directory))
    straight = Run("vit", config, "fsdp2", world)
    straight.step(1, 2)
    straight.save(store, 2)
    straight.step(3, 4)
    resumed = Run("vit", config, "fsdp2", world)
    resumed.load(store, 2)
    resumed.step(3, 4)
    assert_close(resumed, straight, atol=0)


def probes_from_weights(world: World, config: Config, file: Path) -> None:
    """Weights of a file are loaded into slices, but for the head, which alone is trained."""
    if world.is_main:
        initial = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=9, **SIZES)
        safetensors.torch.save_model(initial, str(file))
    world.barrier()
    runs = [Run("vit", config, strategy, world, is_probe=True) for strategy in ("fsdp2", "ddp")]
    for run in runs:
        run.state.initialise(file, num_classes=5, in_channels=3)
    assert_close(*runs, atol=0)
    before = runs[0].tensors()[0]
    for run in runs:
        run.step(1, 2)
    assert_close(*runs, atol=1e-5)
    changed = {
        name for name, value in runs[0].tensors()[0].items() if (value != before[name]).any()
    }
    assert changed == ({"head.weight", "head.bias"} if world.is_main else changed)


def optimizers_update_as_ddp(world: World, config: Config, names: Sequence[str]) -> None:
    """An optimizer's steps on slices are those on whole parameters, or it is refused."""
    differ, refused = [], []
    for name in names:
        changed = config.replace({"recipe.optimizer.name": name})
        try:
            runs = [Run("plain", changed, strategy, world) for strategy in ("fsdp2", "ddp")]
        except ConfigError:
            refused.append(name)
            continue
        for run in runs:
            run.step(1, 3, num_micros=1)
        try:
            assert_close(*runs, atol=1e-5)
        except AssertionError as error:
            differ.append(f"{name}: {error}")
    assert not differ, differ
    assert len(refused) < len(names) / 2, refused
