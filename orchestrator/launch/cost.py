"""What a run will cost in arithmetic, asked of a process that has torch."""

import json
import subprocess
import sys
from dataclasses import dataclass

from orchestrator.config import ConfigError, to_dict
from orchestrator.plan import Plan
from orchestrator.schema import Config
from orchestrator.training.verdict import Exit

_DEADLINE_S = 120
# The backward pass is about two forward passes: Kaplan et al. 2020, arXiv:2001.08361, section 2.1.
_FORWARD_PASSES_A_STEP = 3
_FLOPS_A_MULTIPLY_ADD = 2


class UncountableError(Exception):
    """The cost of a network cannot be told; the message says why."""


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
        UncountableError: it can be built, and not counted.
    """
    command = [sys.executable, "-m", "orchestrator.training.cost", str(plan.num_classes)]
    asked = json.dumps(to_dict(config))
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UncountableError(f"the network has not been built in {_DEADLINE_S} s") from None
    said = done.stderr.strip()
    if done.returncode == Exit.NEVER_RESTART:
        raise ConfigError(said)
    if done.returncode:
        raise UncountableError((said.splitlines() or ["nothing was said"])[-1])
    cost = json.loads(done.stdout)
    gmacs = cost["model/gmacs"]
    images = plan.num_steps * plan.global_batch_size
    flop_an_image = gmacs * 1e9 * _FLOPS_A_MULTIPLY_ADD * _FORWARD_PASSES_A_STEP
    return Cost(cost["model/num_params"], gmacs, flop_an_image * images / 1e15)
