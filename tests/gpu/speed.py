"""Images a second and MFU of the product's training step on batches that lie on the device."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from session import Session

if TYPE_CHECKING:
    from orchestrator.config.schema import Config
    from orchestrator.training.distributed.world import World

# Dense bf16 operations in 10**12 a second, from the vendor's data sheets, by a part of the name.
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "A10G": 70}


@dataclass(frozen=True)
class Load:
    """A network and its batch."""

    model: str
    batch: int
    image_size: int
    recipe: str


RESNET = Load("timm/resnet50", 256, 224, "sgd")
VIT = Load("timm/vit_base_patch16_224", 256, 224, "adamw")
QUICK = Load("timm/test_resnet", 4, 32, "adamw")
FREE = ["runtime.deterministic=false"]
VARIANTS = {
    "deterministic": [],
    "free": FREE,
    "free, grad_checkpointing": [*FREE, "recipe.grad_checkpointing=true"],
    "free, fused": [*FREE, "+recipe.optimizer.kwargs.fused=true"],
}
BY_BLOCKS = "recipe.compile={regional: true, dynamic: false, backend: BACKEND}"
WHOLE = "recipe.compile={dynamic: false}"


def measure_speed(session: Session) -> None:
    """Measure ResNet-50 and ViT-B, in bf16 and channels_last, and what the variants change."""
    for load in [QUICK] if session.is_quick else [RESNET, VIT]:
        for name, overrides in VARIANTS.items():
            measure(session, load, name, overrides)


def measure_compiled(session: Session) -> None:
    """Measure compiled networks: the first step shows the time of compiling."""
    if session.is_quick:
        measure(session, QUICK, "compiled by blocks", [BY_BLOCKS.replace("BACKEND", "aot_eager")])
        return
    by_blocks = [*FREE, BY_BLOCKS.replace("BACKEND", "inductor")]
    measure(session, VIT, "free, compiled by blocks", by_blocks)
    measure(session, RESNET, "free, compiled by blocks", by_blocks)
    measure(session, VIT, "free, compiled", [*FREE, WHOLE])


def measure(session: Session, load: Load, name: str, overrides: list[str]) -> None:
    num_steps = 2 if session.is_quick else 20

    def run() -> dict[str, Any]:
        return _measure(load, session.device, num_steps, overrides)

    session.run(f"{load.model.partition('/')[2]} {name}", run)


def _measure(load: Load, device: str, num_steps: int, overrides: list[str]) -> dict[str, Any]:
    """Train on one batch; return the speed of the steps after the first few."""
    from orchestrator.launch.compose import compose
    from orchestrator.training.distributed.world import init_world

    (composed,) = compose(
        [
            *("data=shards", "data.url=none", f"recipe={load.recipe}", f"model={load.model}"),
            *("tracking=none", f"data.image_size={load.image_size}", f"runtime.device={device}"),
            *("recipe.precision=bf16", f"recipe.global_batch_size={load.batch}", *overrides),
        ]
    )
    with init_world(composed.config.runtime) as world:
        return _train(composed.config, world, num_steps)


def _train(config: "Config", world: "World", num_steps: int) -> dict[str, Any]:
    import torch

    from orchestrator.run.plan import training_petaflop
    from orchestrator.training.task.model import build_model, model_cost

    torch.manual_seed(0)
    model = build_model(config, 1000)
    cost = model_cost(model, config)
    step = product_step(config, world, model)
    first_s = timed(step, 1, world)
    timed(step, 4, world)
    seconds = timed(step, num_steps, world)
    images_per_s = num_steps * config.recipe.global_batch_size / seconds
    tflops = 1000 * training_petaflop(cost, images_per_s)
    figures = {"images/s": images_per_s, "tflops": tflops, "first step s": first_s}
    if world.device.type == "cuda":
        figures["memory GB"] = torch.cuda.max_memory_allocated() / 1e9
        if peak := peak_tflops(torch.cuda.get_device_name()):
            figures["mfu"] = tflops / peak
    return figures


def peak_tflops(device_name: str) -> float | None:
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in device_name), None)


def product_step(config: "Config", world: "World", model: Any) -> Any:
    """Return a function that does one training step, with its optimizer, on one batch."""
    import torch
    from plans import plan

    from data_sharding.loading.loader import Batch
    from orchestrator.training.inputs.device import Device
    from orchestrator.training.state.train_state import TrainState
    from orchestrator.training.step.train_step import TrainStep
    from orchestrator.training.task.losses import make_objective

    size, batch = config.data.image_size, config.recipe.global_batch_size
    device = Device.create(config, world.device)
    state = TrainState.create(model.to(memory_format=device.memory_format), config, world)
    shape = plan(global_batch_size=batch, num_lanes=1, num_micro_batches=1, num_classes=1000)
    train_step = TrainStep(state, make_objective(config.recipe), config, shape, device, world)
    images = torch.randn(batch, config.data.in_channels, size, size, device=world.device)
    labels = torch.randint(0, 1000, (batch,), device=world.device)
    readable = torch.ones(batch, dtype=torch.bool)
    images = images.to(memory_format=device.memory_format)
    held = Batch(images, labels, torch.arange(batch), readable, [])
    number = 0

    def step() -> None:
        nonlocal number
        train_step.forward_backward(number, [held])
        state.strategy.clip_gradients(state.model, config.recipe)
        state.update()
        number += 1

    return step


def timed(step: Any, count: int, world: "World") -> float:
    """Return the seconds that so many steps take on the device."""
    import torch

    start_s = time.perf_counter()
    for _ in range(count):
        step()
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start_s
