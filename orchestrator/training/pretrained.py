"""Fetches pretrained weights of timm: `python -m orchestrator.training.pretrained timm/NAME FILE`.

In a process of its own, since those who submit do without torch.
"""

import sys
from collections.abc import Sequence

import safetensors.torch
import timm

from models import hub
from orchestrator.training.verdict import Exit


def main(arguments: Sequence[str]) -> int:
    """Write the weights as a safetensors file; return 93 if there are none."""
    name, target = arguments
    bare_name = name.removeprefix("timm/")
    if not hub.knows(name) or not timm.models.is_model_pretrained(bare_name):
        print(
            f"init_from={name}: timm has no such pretrained weights. List them: python -c "
            "'import timm; print(timm.list_pretrained(\"*resnet*\"))'",
            file=sys.stderr,
        )
        return Exit.NEVER_RESTART
    try:
        network = timm.create_model(bare_name, pretrained=True)
    except Exception as error:  # of the hub, of requests, of the network
        print(
            f"init_from={name}: its weights cannot be fetched: {type(error).__name__}: {error}. "
            "Fetch them where there is a network: `tahoe train|submit` does, and keeps them in the "
            "run directory; or give a safetensors file.",
            file=sys.stderr,
        )
        return Exit.NEVER_RESTART
    safetensors.torch.save_model(network, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
