"""Measure what a rank's memory holds of a network under each strategy, in training with AdamW.

    python tests/benchmarks/strategy_memory.py [--model NAME] [--ranks 2] [--count] [--strategy S]

Real ranks over gloo, on the CPU, two steps of one image each. Printed are the bytes of weights,
gradients and optimizer state on the rank that has most, and the peak of the growth of its resident
memory since before the network was built, while it trained. With --count nothing is trained: the
bytes are computed from the shapes of the weights, for networks that this machine cannot hold.
"""

import argparse
import os
import platform
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import timm
import torch
from ranks import run_on_ranks
from torch import Tensor

from orchestrator.config.schema import Config
from orchestrator.launch.compose import compose
from orchestrator.training.distributed.world import World
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.strategy.param_state import large_tensors
from orchestrator.training.strategy.zero import balance_by_size

STRATEGIES = ("ddp", "ddp_zero1", "fsdp2")
GB, FLOAT = 1e9, 4


def memory_kb(name: str) -> int:
    """Return a number of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(value)


def measure(world: World, config: Config, model: str) -> None:
    before = memory_kb("VmRSS")
    state = TrainState.create(timm.create_model(model), config, world)
    wrapped = state.strategy.wrap(state.model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    for _ in range(2):
        wrapped(torch.randn(1, 3, 224, 224)).square().mean().backward()
        gradients = bytes_of(
            state, [p.grad for p in state.model.parameters() if p.grad is not None]
        )
        state.update()
    slots = state.optimizer.state_dict()["state"].values()
    kept = bytes_of(state, [*state.model.parameters()]) + gradients
    kept += bytes_of(state, [tensor for one in slots for tensor in large_tensors(one)])
    grown = (memory_kb("VmHWM") - before) * 1024
    found = world.gather_objects((kept, grown))
    if world.is_main:
        kept, grown = max(k for k, _ in found), max(g for _, g in found)
        print(
            f"{model}, {world.size} ranks, {config.strategy.name:10} "
            f"tensors {kept / GB:5.2f} GB, resident at most {grown / GB:5.2f} GB a rank",
            flush=True,
        )


def bytes_of(state: TrainState, tensors: list[Tensor]) -> int:
    return sum(state.strategy.local(tensor).nbytes for tensor in tensors)


def count(model: str, num_ranks: int, strategy: str) -> None:
    """Print the bytes of weights, gradients and two slots of AdamW on the rank that has most."""
    with torch.device("meta"):
        weights = [weight.shape for weight in timm.create_model(model).parameters()]
    sizes = [shape.numel() for shape in weights]
    match strategy:
        case "ddp":
            num_floats = 4 * sum(sizes)
        case "ddp_zero1":
            owners = balance_by_size(sizes, num_ranks)
            loads = [0] * num_ranks
            for size, owner in zip(sizes, owners, strict=True):
                loads[owner] += size
            num_floats = 2 * sum(sizes) + 2 * max(loads)
        case _:
            num_floats = 4 * sum(-(-shape[0] // num_ranks) * shape[1:].numel() for shape in weights)
    kept = FLOAT * num_floats / GB
    print(
        f"{model}, {sum(sizes):,} weights, {num_ranks} ranks, {strategy:10} counted {kept:5.2f} GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--strategy", choices=STRATEGIES)
    parser.add_argument("--count", action="store_true")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    for strategy in [options.strategy] if options.strategy else STRATEGIES:
        if options.count:
            count(options.model, options.ranks, strategy)
            continue
        (composed,) = compose(["recipe=adamw", "runtime.device=cpu", f"strategy={strategy}"])
        run_on_ranks(measure, options.ranks, composed.config, options.model)


if __name__ == "__main__":
    main()
