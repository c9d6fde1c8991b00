"""The strategy of a config."""

from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.device import DTYPES
from orchestrator.training.strategy.ddp import Ddp
from orchestrator.training.strategy.strategy import Strategy
from orchestrator.training.strategy.zero import DdpZero1

_STRATEGIES: dict[str, type[Ddp]] = {"ddp": Ddp, "ddp_zero1": DdpZero1}


def make_strategy(config: Config, world: World) -> Strategy:
    """Create the strategy that a config names."""
    if config.strategy.name == "fsdp2":
        from orchestrator.training.strategy.fsdp2 import Fsdp2  # imports much of torch

        return Fsdp2(world, DTYPES[config.recipe.precision])
    return _STRATEGIES[config.strategy.name](world, config.strategy)
