"""A run whose strategy changes when it is resumed, beside one that is left alone."""

from collections.abc import Sequence
from pathlib import Path

from cli_runner import Tahoe

from orchestrator.run.rundir import RunDir

OPTIONS = (
    *("launcher.nproc_per_node=2", "recipe.optimizer.name=adamw", "recipe.ema_decay=0.9"),
    *("recipe.schedule.name=constant", "recipe.schedule.warmup_epochs=0"),
    *("evaluate.every_epochs=0.25", "logging.every_steps=1", "tracking=none"),
)


def train_straight_and_changing(
    tahoe: Tahoe, digits: Path, strategies: Sequence[str], *more: str
) -> tuple[RunDir, RunDir]:
    """Train 24 steps with ddp, and again with another strategy after each eighth step."""
    for name, num_steps in (("straight", 24), ("changing", 8)):
        options = (f"run_dir={name}", f"data.url='{digits}'", f"recipe.steps={num_steps}")
        tahoe("train", *options, *OPTIONS, *more)
    for num_steps, strategy in zip((16, 24), strategies, strict=True):
        tahoe("resume", "changing", f"recipe.steps={num_steps}", f"strategy.name={strategy}")
    return RunDir(tahoe.cwd / "straight"), RunDir(tahoe.cwd / "changing")
