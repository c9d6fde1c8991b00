"""How long a step waits for a checkpoint: Tahoe's, torch.save, and torch's own async_save.

    python tests/benchmarks/saving.py [DIRECTORY]

ResNet-50 with momentum and averaged weights, one rank on one thread, a second core free. A step is
matrix products for about a second. Each way saves at the same steps; what is told is by how much
the step of the save, and the slowest of the three after it, is longer than the median of those
without. Each figure is the median of several saves.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import timm
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.launch.compose import compose
from orchestrator.training.distributed.world import World
from orchestrator.training.state.async_saver import AsyncCheckpointer
from orchestrator.training.state.restore import restore
from orchestrator.training.state.train_state import TrainState

NUM_SAVES, STEPS_BETWEEN = 5, 5


def make_world() -> World:
    return World(0, 0, 1, torch.device("cpu"), dist.group.WORLD)


def make_state() -> TrainState:
    (composed,) = compose(["recipe.ema_decay=0.9"])
    torch.manual_seed(0)
    state = TrainState.create(timm.create_model("resnet50"), composed.config, make_world())
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    return state


def multiply(pair: tuple[torch.Tensor, torch.Tensor], count: int) -> float:
    """Return how many seconds so many matrix products take."""
    start_s = time.perf_counter()
    for _ in range(count):
        torch.mm(*pair)
    return time.perf_counter() - start_s


def measure(save: Callable[[int], object], finish: Callable[[], object]) -> dict[str, float]:
    """Return by how many seconds the step of a save, and those after it, are longer."""
    pair = (torch.randn(512, 512), torch.randn(512, 512))
    count = round(100 / multiply(pair, 100))  # a second's
    quiet, at_save, after = [], [], []
    for number in range(1, NUM_SAVES * STEPS_BETWEEN + 1):
        start_s = time.perf_counter()
        multiply(pair, count)
        phase = number % STEPS_BETWEEN
        if phase == 0:
            save(number)
        seconds = time.perf_counter() - start_s
        if phase == 0:
            at_save.append(seconds)
        elif number > STEPS_BETWEEN and phase in (1, 2, 3):
            after.append(seconds)
        else:
            quiet.append(seconds)
    finish()
    usual = statistics.median(quiet)
    slowest = [max(after[i : i + 3]) for i in range(0, len(after), 3)]
    return {
        "step_s": usual,
        "save_s": statistics.median(at_save) - usual,
        "after_s": statistics.median(slowest) - usual,
    }


def everything(state: TrainState) -> dict[str, Any]:
    assert state.ema is not None
    return {
        "model": state.model.state_dict(),
        "ema": state.ema.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }


def with_torch_save(state: TrainState, directory: Path) -> dict[str, float]:
    def save(step: int) -> None:
        with (directory / "state.pt").open("wb") as file:
            torch.save(everything(state), file)
            file.flush()
            os.fsync(file.fileno())

    return measure(save, lambda: None)


def with_async_save(state: TrainState, directory: Path) -> dict[str, float]:
    pending: list[Any] = []

    def save(step: int) -> None:
        finish()
        place = directory / f"step-{step}"
        pending.append(dcp.async_save(everything(state), checkpoint_id=place))

    def finish() -> None:
        while pending:
            pending.pop().result()

    return measure(save, finish)


def with_tahoe(state: TrainState, directory: Path) -> dict[str, float]:
    (composed,) = compose([])
    saver = AsyncCheckpointer(CheckpointStore(str(directory)), composed.config.checkpoint)
    return measure(lambda step: saver.save(state, step, {}), saver.wait)


def resuming(state: TrainState, world: World, store: CheckpointStore) -> tuple[float, float]:
    """Return the seconds of reading and hashing the newest checkpoint, and of resuming from it."""
    where = Path(store.location(store.steps()[-1]))
    bare, whole = [], []
    for _ in range(NUM_SAVES):
        start_s = time.perf_counter()
        for file in where.iterdir():
            sha256(file.read_bytes()).hexdigest()
        bare.append(time.perf_counter() - start_s)
        start_s = time.perf_counter()
        with store.open_latest() as found:
            assert found is not None
            restore(state, found[1], world)
        whole.append(time.perf_counter() - start_s)
    return statistics.median(bare), statistics.median(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path(tempfile.gettempdir()))
    place = Path(tempfile.mkdtemp(dir=parser.parse_args().directory))
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=0, world_size=1)
    torch.set_num_threads(1)
    state = make_state()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{NUM_SAVES} saves each, on {place}")
    try:
        for name, run in (
            ("torch.save + fsync", with_torch_save),
            ("dcp.async_save", with_async_save),
            ("tahoe", with_tahoe),
        ):
            directory = place / name.replace(" ", "-")
            directory.mkdir()
            figures = run(state, directory)
            told = "  ".join(f"{key} {value:7.3f}" for key, value in figures.items())
            print(f"{name:20} {told}", flush=True)
        bare_s, whole_s = resuming(state, make_world(), CheckpointStore(str(directory)))
        share = whole_s / bare_s
        print(f"reading and hashing {bare_s:.3f} s; resuming {whole_s:.3f} s, x {share:.2f}")
    finally:
        dist.destroy_process_group()
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
