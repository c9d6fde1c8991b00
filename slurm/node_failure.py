"""Which node an attempt died of, as srun's own messages say it."""

import re
from typing import NamedTuple

_NODE_FAILURE = re.compile(r"^srun: error: Node failure on (\S+?)\.?$", re.MULTILINE)
_ENDED_TASK = re.compile(r"^srun: error: (\S+): tasks? (\d+)[\d,\-]*: (.+)$", re.MULTILINE)
# What the network or the code brings about alike on every node.
_NOT_THE_NODE = re.compile(r"Exited with exit code|Out Of Memory|Terminated")


def lost_node(messages: str) -> str | None:
    """Return the node that srun says was lost; what Slurm then kills is not looked at."""
    lost = _NODE_FAILURE.search(messages)
    return lost[1] if lost else None


def failed_node(messages: str) -> str | None:
    """Return the node that failed first, where the cause may be the node's own; else None.

    A node that is lost and a rank that a signal has ended (killed by the kernel, a bus error) are
    such causes; an exit code, memory that did not suffice and a termination are not. What comes
    after the first end of a rank is srun ending the others.
    """
    for line in messages.splitlines():
        if lost := _NODE_FAILURE.match(line):
            return lost[1]
        if ended := _ENDED_TASK.match(line):
            return None if _NOT_THE_NODE.match(ended[3]) else ended[1]
    return None


class EndedRank(NamedTuple):
    """The rank that ended first, where, and how srun says it."""

    rank: int
    node: str
    how: str


def first_ended(messages: str) -> EndedRank | None:
    """Return the rank that ended first; srun then ends the others. None if it names none."""
    ended = _ENDED_TASK.search(messages)
    return EndedRank(int(ended[2]), ended[1], ended[3]) if ended else None
