"""What Tahoe adds to a step: a network so small that the host is the limit, beside plain torch."""

from typing import Any

from session import Session
from speed import product_step, timed


def measure_overhead(session: Session) -> None:
    """Measure a step of the product and one of DDP, autocast and torch's optimizer alone."""
    num_steps = 3 if session.is_quick else 300
    session.run("step of a tiny network", lambda: _measure(session.device, num_steps))


def _measure(device: str, num_steps: int) -> dict[str, float]:
    from orchestrator.launch.compose import compose
    from orchestrator.training.distributed.world import init_world
    from orchestrator.training.task.model import build_model

    (composed,) = compose(
        [
            *("data=shards", "data.url=none", "recipe=sgd", "model=timm/test_resnet"),
            *("tracking=none", "data.image_size=32", f"runtime.device={device}"),
            *("recipe.precision=bf16", "recipe.global_batch_size=8"),
        ]
    )
    config = composed.config
    with init_world(config.runtime) as world:
        ours = product_step(config, world, build_model(config, 1000))
        plain = _plain_step(build_model(config, 1000).to(world.device), world.device)
        seconds = dict[str, list[float]](ours=[], plain=[])
        for _ in range(3):
            for name, step in (("ours", ours), ("plain", plain)):
                timed(step, 3, world)
                seconds[name].append(timed(step, num_steps, world) / num_steps)
    best = {name: 1e6 * min(times) for name, times in seconds.items()}
    return {"us": best["ours"], "plain us": best["plain"], "added us": best["ours"] - best["plain"]}


def _plain_step(model: Any, device: Any) -> Any:
    """Return a step as one writes it by hand."""
    import torch
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel

    ddp = DistributedDataParallel(model.to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True)
    images = torch.randn(8, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (8,), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(ddp(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
