"""Pauses between attempts: exponential back-off with jitter."""

import random
from collections.abc import Iterator

_random = random.SystemRandom()  # has no state that forked processes would share


def backoff_pauses(first_s: float, longest_s: float) -> Iterator[float]:
    """Yield pauses that double up to `longest_s`, each scaled by a random factor in [0.5, 1).

    The jitter keeps a thousand processes from returning to a store at the same moment.
    """
    pause_s = first_s
    while True:
        yield pause_s * _random.uniform(0.5, 1)
        pause_s = min(2 * pause_s, longest_s)
