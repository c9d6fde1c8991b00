"""The cost of a run, and whether it can be built: computed in a subprocess with torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.parse import to_dict
from orchestrator.config.schema import Config
from orchestrator.launch.checks.known_names import are_known, reject_downloads
from orchestrator.launch.torch_subprocess import TorchWorkerError, run_torch_worker
from orchestrator.run.plan import Plan, image_sizes, training_petaflop

_DEADLINE_S = 120
_WITHOUT_EFFECT = {"seed", "run_dir", "runs_dir", "init_from", "runtime", "slurm", "tracking"}
_built = set[str]()  # requests that succeeded, of the points of a sweep


@dataclass(frozen=True)
class ModelCost:
    """Trainable parameters, 10**9 multiply-adds an image forward, and 10**15 FLOP to train."""

    num_params: int
    gmacs: float
    petaflop: float

    def __str__(self) -> str:
        return (
            f"{self.num_params:,} parameters, {self.gmacs:.4g} GMACs an image forward, "
            f"about {self.petaflop:.4g} petaFLOP to train"
        )


def model_cost(config: Config, plan: Plan) -> ModelCost:
    """Compute the cost of a run."""
    config = plan.with_sizes(config)
    reject_downloads(config)
    cost = _build(config, plan)
    sizes = image_sizes(config, plan.steps_per_epoch)
    num_images = sizes.num_of_last(plan.num_steps) * plan.global_batch_size
    petaflop = training_petaflop(cost, num_images)
    return ModelCost(cost["model/num_params"], cost["model/gmacs"], petaflop)


def check_makeable(config: Config, plan: Plan, weights: tuple[Path, str] | None = None) -> None:
    """Refuse a run that no rank could build.

    Args:
        weights: the file of the initial weights, and its digest.
    """
    config = plan.with_sizes(config)
    reject_downloads(config)
    if weights is None and config.launcher.name == "local" and are_known(config):
        return  # the ranks start at once, and report what is still wrong
    file, digest = weights or (None, None)
    values = {k: v for k, v in to_dict(config).items() if k not in _WITHOUT_EFFECT}
    values["recipe"]["optimizer"] |= {"lr": None, "weight_decay": None}
    key = json.dumps([values, plan.num_classes, digest], sort_keys=True)
    if key not in _built:
        try:
            _build(config, plan, init_file=file and str(file))
        except TorchWorkerError:
            return  # this proves nothing against it
        _built.add(key)


def _build(config: Config, plan: Plan, **options: Any) -> Any:
    request = {"config": to_dict(config), "num_classes": plan.num_classes, **options}
    return run_torch_worker(
        "torch_workers.launch_functions:build_and_count", request, deadline_s=_DEADLINE_S
    )
