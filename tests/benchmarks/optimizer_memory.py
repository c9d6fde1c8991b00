"""What a rank's memory holds of a network under each strategy.

    python tests/benchmarks/optimizer_memory.py [--model vit_base_patch16_224] [--ranks 2]

Real ranks over gloo, AdamW, two steps of one image each. Told are the optimizer's slots on the rank
that has most, and by how much its resident memory has grown from before the network was built.
"""

import argparse
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import timm
import torch
from ranks import run_on_ranks

from orchestrator.config.schema import Config
from orchestrator.launch.compose import compose
from orchestrator.training.distributed.world import World
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.strategy.param_state import large_tensors

STRATEGIES = ("ddp", "ddp_zero1")


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(world: World, config: Config, model: str) -> None:
    before = resident_bytes()
    network = timm.create_model(model)
    state = TrainState.create(network, config, world)
    ddp = state.strategy.wrap(state.model)
    for _ in range(2):
        ddp(torch.randn(1, 3, 224, 224)).square().mean().backward()
        state.update()
    kept = state.optimizer.state_dict()["state"]
    slots = sum(tensor.nbytes for one in kept.values() for tensor in large_tensors(one))
    found = world.gather_objects((slots, resident_bytes() - before))
    if world.is_main:
        most_slots, most = max(s for s, _ in found) / 1e9, max(r for _, r in found) / 1e9
        print(
            f"{model}, {world.size} ranks, {config.strategy:10} slots {most_slots:.2f} GB, "
            f"grown by {most:.2f} GB a rank",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    (composed,) = compose(["recipe=adamw", "runtime.device=cpu"])
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    for strategy in STRATEGIES:
        config = replace(composed.config, strategy=strategy)
        run_on_ranks(measure, options.ranks, config, options.model)


if __name__ == "__main__":
    main()
