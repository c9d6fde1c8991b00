"""What a run will cost in arithmetic, asked of a process that has torch."""

from dataclasses import dataclass

from orchestrator.config import to_dict
from orchestrator.launch.ask import ask
from orchestrator.plan import Plan, training_petaflop
from orchestrator.schema import Config

_DEADLINE_S = 120


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
        ConfigError: there is no such network, or it does not take these options or images.
        UnansweredError: it can be built, and not counted.
    """
    network = {"config": to_dict(config), "num_classes": plan.num_classes}
    cost = ask("cost", network, deadline_s=_DEADLINE_S)
    gmacs = cost["model/gmacs"]
    petaflop = training_petaflop(gmacs, plan.num_steps * plan.global_batch_size)
    return Cost(cost["model/num_params"], gmacs, petaflop)
