"""A rank of tests/benchmarks/links.py: trains what it is asked to, on images in memory.

Takes a line of JSON for each request from its standard input, and answers with one.
"""

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from orchestrator.config.parse import parse
from orchestrator.training.distributed.world import World, init_world
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.task.model import build_model

NUM_CLASSES = 10


class Training:
    """A network under a strategy, with one batch that stays."""

    def __init__(self, world: World, config: dict[str, Any], batch: int, num_micros: int) -> None:
        parsed = parse(config)
        torch.manual_seed(0)
        model = build_model(parsed, NUM_CLASSES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.world, self.num_micros, self.num_done = world, num_micros, 0
        self.state = TrainState.create(model, parsed, world)
        self.wrapped = self.state.strategy.wrap(self.state.model)
        shape = (batch, parsed.data.in_channels, parsed.data.image_size, parsed.data.image_size)
        self.images = torch.randn(shape).to(memory_format=torch.channels_last)
        self.labels = torch.arange(batch) % NUM_CLASSES

    def step(self, *, is_silent: bool = False) -> None:
        """Do a step; a silent one sends no gradients."""
        self.state.strategy.prepare_step(self.num_done)
        for micro in range(self.num_micros):
            sends = micro == self.num_micros - 1 and not is_silent
            with nullcontext() if sends else self.state.strategy.accumulate(self.wrapped):
                loss = F.cross_entropy(self.wrapped(self.images), self.labels) / self.num_micros
                loss.backward()
        self.state.update()
        self.num_done += 1

    def warm_up(self) -> None:
        """Let DDP group its buckets, and PowerSGD reach its first step."""
        for _ in range(2):
            F.cross_entropy(self.wrapped(self.images), self.labels).backward()
        self.state.optimizer.zero_grad()
        self.step()

    def measure(self, num_steps: int, *, is_silent: bool) -> dict[str, float]:
        """Return the seconds of a step and the bytes that it sends, after one that is not counted.

        On a link that has changed, TCP finds its speed in that one.
        """
        self.step(is_silent=is_silent)
        self.world.barrier()
        sent, start_s = _sent_bytes(), time.perf_counter()
        for _ in range(num_steps):
            self.step(is_silent=is_silent)
        self.world.barrier()
        elapsed_s = time.perf_counter() - start_s
        return {"step_s": elapsed_s / num_steps, "bytes": (_sent_bytes() - sent) / num_steps}


def _sent_bytes() -> int:
    """Return the bytes that this host has sent, with headers, as its interface counts them."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.split()[0] == "eth0:")


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    os.environ.update(settings["environ"])
    training: Training | None = None
    with init_world(parse(settings["config"]).runtime) as world:
        _answer({})
        for line in sys.stdin:
            match json.loads(line):
                case {"train": config, "batch": batch, "num_micros": num_micros}:
                    training = Training(world, config, batch, num_micros)
                    training.warm_up()
                    _answer({})
                case {"steps": num_steps, "is_silent": is_silent}:
                    assert training is not None
                    _answer(training.measure(num_steps, is_silent=is_silent))
                case {"all_reduces": number}:
                    start_s = time.perf_counter()
                    for _ in range(number):
                        world.barrier()
                    _answer({"all_reduce_s": (time.perf_counter() - start_s) / number})


def _answer(values: dict[str, float]) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
