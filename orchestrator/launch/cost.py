"""What a run will cost in arithmetic, asked of a process that has torch."""

import json
import subprocess
import sys

from orchestrator.config import ConfigError, to_dict
from orchestrator.plan import Plan
from orchestrator.schema import Config
from orchestrator.training.verdict import Exit

_DEADLINE_S = 120
# The backward pass is about two forward passes: Kaplan et al. 2020, arXiv:2001.08361, section 2.1.
_FORWARD_PASSES_A_STEP = 3
_FLOPS_A_MULTIPLY_ADD = 2


def cost_line(config: Config, plan: Plan) -> str:
    """Return parameters, multiply-adds and the arithmetic of the whole training, or why not.

    Raises:
        ConfigError: there is no such network, or it does not take these options or images.
    """
    command = [sys.executable, "-m", "orchestrator.training.cost", str(plan.num_classes)]
    asked = json.dumps(to_dict(config))
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"cost unknown: the network has not been built within {_DEADLINE_S} s"
    said = done.stderr.strip()
    if done.returncode == Exit.NEVER_RESTART:
        raise ConfigError(said)
    if done.returncode:
        return f"cost unknown: {(said.splitlines() or ['nothing was said'])[-1]}"
    cost = json.loads(done.stdout)
    gmacs, num_params = cost["model/gmacs"], cost["model/num_params"]
    images = plan.num_steps * plan.global_batch_size
    petaflop = gmacs * _FLOPS_A_MULTIPLY_ADD * _FORWARD_PASSES_A_STEP * images / 1e6
    return (
        f"{num_params:,} parameters, {gmacs:.4g} GMACs an image forward, "
        f"about {petaflop:.4g} petaFLOP to train"
    )
