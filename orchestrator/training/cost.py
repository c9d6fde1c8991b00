"""What a network costs, told to `launch.cost` before anything is trained.

Nothing is allocated, so it does on a login node.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.config import parse
from orchestrator.training.answer import answer
from orchestrator.training.network import build_network, count_cost


def cost(config: Mapping[str, Any], num_classes: int) -> Mapping[str, float]:
    """Return what `network.count_cost` counts."""
    known = parse(config)
    with torch.device("meta"):
        return count_cost(build_network(known, num_classes), known)


if __name__ == "__main__":
    sys.exit(answer(cost))
