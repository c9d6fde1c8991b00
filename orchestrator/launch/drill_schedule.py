"""What is done to a run in a drill, and when: a pure function of a seed.

A fault either ends an attempt or is lived through. Attempts are hurt one after the other: some
faults that are lived through, then one that ends it; the last attempt is left alone and finishes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

ENDING = (
    "kill one rank",
    "kill all ranks",
    "ask to stop",
    "kill in a save",
    "disk full in a save",
    "truncate a checkpoint",
    "flip a bit of a checkpoint",
)
PASSING = ("pause a rank",)
KINDS = (*ENDING, *PASSING)
_MOST_STEPS = 5  # from the first step of an attempt to its end
_MOST_CALLS = 60  # that write, in a save: which one is the last


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Args:
        after_steps: of this attempt.
        which: a number that picks a rank, a call or a byte.
    """

    kind: str
    after_steps: int
    which: int

    @property
    def is_in_save(self) -> bool:
        return self.kind in ("kill in a save", "disk full in a save")

    @property
    def is_damage(self) -> bool:
        """Whether a checkpoint is damaged, once all ranks have been killed."""
        return "checkpoint" in self.kind


@dataclass(frozen=True)
class Attempt:
    """What is lived through, in order, and what ends the attempt; None: it is left alone."""

    passing: tuple[Fault, ...]
    ending: Fault | None


def schedule(num_faults: int, kinds: Sequence[str], seed: int) -> list[Attempt]:
    """Return the attempts of a drill; every kind comes about equally often.

    Raises:
        ValueError: there is no such kind, or no fault is asked for.
    """
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"no such kinds: {', '.join(unknown)}. There are: {', '.join(KINDS)}")
    if num_faults < 1:
        raise ValueError(f"{num_faults} faults are none")
    draw = random.Random(seed)  # noqa: S311
    dealt = [kinds[i % len(kinds)] for i in range(num_faults)]
    draw.shuffle(dealt)
    attempts, passing = [], list[Fault]()
    for kind in dealt:
        which = draw.randrange(_MOST_CALLS if "save" in kind else 1 << 30)
        fault = Fault(kind, draw.randint(1, _MOST_STEPS), which)
        if kind in PASSING:
            passing.append(fault)
        else:
            attempts.append(Attempt(tuple(passing), fault))
            passing = []
    return [*attempts, Attempt(tuple(passing), None)]
