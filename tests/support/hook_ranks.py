"""What each rank does in the tests of hooks that compress gradients."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.state.train_state import TrainState

RANK, START = 2, 3  # of PowerSGD


class Network(nn.Module):
    """Several buckets of 1 MiB, a vector each, and a matrix whose gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(600, 600) for _ in range(4)))
        self.head = nn.Linear(600, 10)
        self.idle = nn.Linear(600, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)) + 0 * self.idle(x)  # type: ignore[no-any-return]


def gradients(world: World, config: Config, hook: str | None, num_steps: int) -> list[list[Tensor]]:
    """Return the gradients of each step, of the same weights, on batches that differ by rank."""
    changes = {"strategy.comm_hook": hook, "strategy.bucket_cap_mb": 1}
    changes |= {"strategy.matrix_approximation_rank": RANK, "strategy.start_powersgd_step": START}
    torch.manual_seed(0)
    state = TrainState.create(Network(), config.replace(changes), world)
    wrapped, found = state.strategy.wrap(state.model), []
    for step in range(-2 if state.strategy.needs_warm_up else 0, num_steps):
        if step >= 0:
            state.strategy.prepare_step(step)
        generator = torch.Generator().manual_seed(100 * step + world.rank + 1000)
        loss = F.cross_entropy(wrapped(torch.randn(8, 600, generator=generator)), torch.arange(8))
        loss.backward()
        if step >= 0:
            found.append([p.grad.clone() for p in state.model.parameters() if p.grad is not None])
        state.model.zero_grad()
    return found


def average_as_their_papers_say(world: World, config: Config) -> None:
    """bf16 rounds; PowerSGD is of low rank from its step on; all ranks have the same gradients."""
    plain = gradients(world, config, None, START + 2)
    rounded = gradients(world, config, "bf16_compress", START)
    for ours, theirs in zip(rounded, plain, strict=False):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, one.bfloat16())  # what was added was sent in bf16
            assert is_close(one, other, 0.01)
    low_rank = gradients(world, config, "powersgd", START + 2)
    for step, (ours, theirs) in enumerate(zip(low_rank, plain, strict=True)):
        for one, other in zip(ours, theirs, strict=True):
            is_sent_whole = step < START or one.dim() == 1 or not other.any()
            assert is_close(one, other, 1e-6) == is_sent_whole, step
            if step >= START and one.dim() == 2:
                assert torch.linalg.matrix_rank(one, rtol=1e-4) <= RANK
    for tensor in (t for grads in (*rounded, *low_rank) for t in grads):
        first = tensor.clone()
        dist.broadcast(first, 0)
        assert torch.equal(tensor, first)


def is_close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max())
