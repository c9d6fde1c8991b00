"""What a run will cost in arithmetic, and whether it can be made, asked of one that has torch."""

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
_WITHOUT_EFFECT = ("seed", "run_dir", "runs_dir", "init_from", "runtime", "slurm", "tracking")
_made = set[str]()  # what has been asked and could be made, of the points of a sweep


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
    """Return what a run costs.

    Raises:
        ConfigError: something that the config names is not there, or does not take its options.
        UnansweredError: it can be built, and not counted.
    """
    reject_downloads(config)
    network = {"config": to_dict(config), "num_classes": plan.num_classes}
    cost = run_torch_worker("torch_workers.model_cost", network, deadline_s=_DEADLINE_S)
    sizes = image_sizes(config, plan.steps_per_epoch)
    num_images = sizes.num_of_last(plan.num_steps) * plan.global_batch_size
    petaflop = training_petaflop(cost, num_images)
    return ModelCost(cost["model/num_params"], cost["model/gmacs"], petaflop)


def check_makeable(config: Config, plan: Plan, weights: tuple[Path, str] | None = None) -> None:
    """Refuse a run that no rank could make, where that is seen beforehand.

    Args:
        weights: the file that the run is to begin with, and its digest.

    Raises:
        ConfigError: as for `model_cost`; or the weights are of another network.
    """
    reject_downloads(config)
    if weights is None and config.launcher.name == "local" and are_known(config):
        return  # the ranks begin at once, and will say what is left to be said
    values: dict[str, Any] = to_dict(config)
    file, digest = weights or (None, None)
    told = {key: value for key, value in values.items() if key not in _WITHOUT_EFFECT}
    told["recipe"]["optimizer"]["lr"] = told["recipe"]["optimizer"]["weight_decay"] = None
    key = json.dumps([told, plan.num_classes, digest], sort_keys=True)
    if key in _made:
        return
    request = {"config": to_dict(config), "num_classes": plan.num_classes}
    try:
        run_torch_worker(
            "torch_workers.model_cost",
            {**request, "init_file": file and str(file)},
            deadline_s=_DEADLINE_S,
        )
    except TorchWorkerError:
        return  # nothing is known against it
    _made.add(key)
