"""What a run will cost in arithmetic, and whether it can be made, asked of one that has torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import to_dict
from orchestrator.launch.ask import UnansweredError, ask
from orchestrator.launch.names import are_plain, refuse_fetching
from orchestrator.plan import Plan, image_sizes, training_petaflop
from orchestrator.schema import Config

_DEADLINE_S = 120
_WITHOUT_EFFECT = ("seed", "run_dir", "runs_dir", "init_from", "cluster", "tracking")
_made = set[str]()  # what has been asked and could be made, of the points of a sweep


@dataclass(frozen=True)
class Cost:
    """Trainable parameters, 10**9 multiply-adds an image forward, and 10**15 FLOP to train."""

    num_params: int
    gmacs: float
    petaflop: float

    def __str__(self) -> str:
        return (
            f"{self.num_params:,} parameters, {self.gmacs:.4g} GMACs an image forward, "
            f"about {self.petaflop:.4g} petaFLOP to train"
        )


def cost_of(config: Config, plan: Plan) -> Cost:
    """Return what a run costs.

    Raises:
        ConfigError: something that the config names is not there, or does not take its options.
        UnansweredError: it can be built, and not counted.
    """
    refuse_fetching(config)
    network = {"config": to_dict(config), "num_classes": plan.num_classes}
    cost = ask("cost", network, deadline_s=_DEADLINE_S)
    sizes = image_sizes(config, plan.steps_per_epoch)
    num_images = sizes.num_of_last(plan.num_steps) * plan.global_batch_size
    petaflop = training_petaflop(cost, num_images)
    return Cost(cost["model/num_params"], cost["model/gmacs"], petaflop)


def check_makeable(config: Config, plan: Plan, weights: tuple[Path, str] | None = None) -> None:
    """Refuse a run that no rank could make, where that is seen beforehand.

    Args:
        weights: the file that the run is to begin with, and its digest.

    Raises:
        ConfigError: as for `cost_of`; or the weights are of another network.
    """
    refuse_fetching(config)
    if weights is None and config.launcher.name == "local" and are_plain(config):
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
        ask("cost", {**request, "init_file": file and str(file)}, deadline_s=_DEADLINE_S)
    except UnansweredError:
        return  # nothing is known against it
    _made.add(key)
