"""What a network costs, told before anything is trained.

    python -m orchestrator.training.cost NUM_CLASSES < config.json

A process of its own, since what is before the launch imports no torch. It prints what
`network.count_cost` counts, as JSON; nothing is allocated, so it does on a login node.
"""

import json
import sys

import torch

from orchestrator.config import ConfigError, parse
from orchestrator.training.network import build_network, count_cost
from orchestrator.training.verdict import Exit


def main(num_classes: int) -> int:
    try:
        config = parse(json.load(sys.stdin))
        with torch.device("meta"):
            cost = count_cost(build_network(config, num_classes), config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return Exit.NEVER_RESTART
    print(json.dumps(cost))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
