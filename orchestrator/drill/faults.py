"""What is done to a run in a drill, and when: a pure function of a seed.

A fault either ends an attempt or is lived through. Attempts are hurt one after the other: some
faults that are lived through, then one that ends it; the last attempt is left alone and finishes.
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
LOSE_A_NODE = "lose a node"  # of a cluster, where nothing else is done
_MOST_STEPS = 5  # from the first step of an attempt to its end
_MOST_CALLS = 60  # that write, in a save: which one is the last


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Args:
        after_steps: of this attempt.
        target: a number that picks a rank, a call or a byte.
    """

    kind: str
    after_steps: int
    target: int

    @property
    def is_pause(self) -> bool:
        return self.kind == "pause a rank"

    @property
    def mlflow_fault(self) -> str | None:
        """What fails of MLflow's answers, if that is what fails."""
        return self.kind.removeprefix(_MLFLOW) if self.kind in OF_MLFLOW else None

    @property
    def store_fault(self) -> str | None:
        """What fails of the reads of data, if that is what fails."""
        return self.kind.removeprefix(_STORE) if self.kind in OF_STORE else None

    @property
    def is_in_save(self) -> bool:
        return self.kind in ("kill in a save", "disk full in a save")

    @property
    def corrupts_checkpoint(self) -> bool:
        """Whether a checkpoint is damaged, once all ranks have been killed."""
        return "checkpoint" in self.kind


@dataclass(frozen=True)
class AttemptPlan:
    """What is lived through, in order, and what ends the attempt; None: it is left alone."""

    passing: tuple[Fault, ...]
    ending: Fault | None


def schedule(num_faults: int, kinds: Sequence[str], seed: int) -> list[AttemptPlan]:
    """Return the attempts of a drill; what is lived through comes thrice as often as what ends one.

    Raises:
        ValueError: there is no such kind, or no fault is asked for.
    """
    if unknown := sorted(set(kinds) - {*KINDS, LOSE_A_NODE}):
        raise ValueError(f"no such kinds: {', '.join(unknown)}. There are: {', '.join(KINDS)}")
    if num_faults < 1:
        raise ValueError(f"{num_faults} faults are none")
    draw = random.Random(seed)  # noqa: S311
    again = [kind for kind in kinds if kind in TRANSIENT]
    dealt = list(islice(cycle([*kinds, *again, *again]), num_faults))
    draw.shuffle(dealt)
    attempts, passing = [], list[Fault]()
    for kind in dealt:
        which = draw.randrange(_MOST_CALLS if "save" in kind else 1 << 30)
        fault = Fault(kind, draw.randint(1, _MOST_STEPS), which)
        if kind in TRANSIENT:
            passing.append(fault)
        else:
            attempts.append(AttemptPlan(tuple(passing), fault))
            passing = []
    return [*attempts, AttemptPlan(tuple(passing), None)]
