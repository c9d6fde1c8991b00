"""The fault schedule of a drill: which faults are injected, and when, as a function of a seed.

A fault is transient, or fatal to the attempt. Each attempt meets some transient faults and one
fatal fault; the last attempt meets no fatal one and finishes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

FATAL = (
    "kill one rank",
    "kill all ranks",
    "ask to stop",
    "kill in a save",
    "disk full in a save",
    "truncate a checkpoint",
    "flip a bit of a checkpoint",
)
_MLFLOW, _STORE = "MLflow ", "store "
OF_MLFLOW = tuple(_MLFLOW + how for how in ("down", "slow", "error", "reply lost"))
OF_STORE = tuple(_STORE + how for how in ("slow", "error", "cut", "throttled"))
TRANSIENT = ("pause a rank", *OF_MLFLOW, *OF_STORE)
KINDS = (*FATAL, *TRANSIENT)
LOSE_A_NODE = "lose a node"  # the only fault on a cluster
_MAX_STEPS = 5  # from the first step of an attempt to its end
_MAX_CALLS = 60  # write calls of a save before the one that fails


@dataclass(frozen=True)
class Fault:
    """A scheduled fault.

    Args:
        after_steps: steps of the attempt before the fault.
        target: a number that selects a rank, a call or a byte.
    """

    kind: str
    after_steps: int
    target: int

    @property
    def is_pause(self) -> bool:
        return self.kind == "pause a rank"

    @property
    def mlflow_fault(self) -> str | None:
        """The failure of MLflow's server, for kinds in `OF_MLFLOW`."""
        return self.kind.removeprefix(_MLFLOW) if self.kind in OF_MLFLOW else None

    @property
    def store_fault(self) -> str | None:
        """The failure of reads from the data store, for kinds in `OF_STORE`."""
        return self.kind.removeprefix(_STORE) if self.kind in OF_STORE else None

    @property
    def is_in_save(self) -> bool:
        return self.kind in ("kill in a save", "disk full in a save")

    @property
    def corrupts_checkpoint(self) -> bool:
        """True if a checkpoint is damaged after all ranks are killed."""
        return "checkpoint" in self.kind


@dataclass(frozen=True)
class AttemptPlan:
    """The faults of an attempt, in order; without a fatal one the attempt finishes."""

    transient: tuple[Fault, ...] = ()
    fatal: Fault | None = None


def schedule(num_faults: int, kinds: Sequence[str], seed: int) -> list[AttemptPlan]:
    """Schedule faults for the attempts of a drill; transient kinds occur thrice as often."""
    rng = random.Random(seed)  # noqa: S311
    transient_kinds = [kind for kind in kinds if kind in TRANSIENT]
    scheduled = list(islice(cycle([*kinds, *transient_kinds * 2]), num_faults))
    rng.shuffle(scheduled)
    attempts, transient = [], list[Fault]()
    for kind in scheduled:
        target = rng.randrange(_MAX_CALLS if "save" in kind else 1 << 30)
        fault = Fault(kind, rng.randint(1, _MAX_STEPS), target)
        if kind in TRANSIENT:
            transient.append(fault)
        else:
            attempts.append(AttemptPlan(tuple(transient), fault))
            transient = []
    return [*attempts, AttemptPlan(tuple(transient))]
