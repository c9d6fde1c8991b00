"""The node that an attempt failed on, from srun's messages."""

import re
from typing import NamedTuple

_NODE_FAILURE = re.compile(r"^srun: error: Node failure on (\S+?)\.?$", re.MULTILINE)
_ENDED_TASK = re.compile(r"^srun: error: (\S+): tasks? (\d+)[\d,\-]*: (.+)$", re.MULTILINE)
# Ends that the network or the code can cause on every node.
_NOT_THE_NODE = re.compile(r"Exited with exit code|Out Of Memory|Terminated")


def lost_node(messages: str) -> str | None:
    """Return the node that srun reports as lost, if any."""
    match = _NODE_FAILURE.search(messages)
    return match[1] if match else None


def failed_node(messages: str) -> str | None:
    """Return the node that failed first, if the cause may be the node itself; else None.

    Such causes are a lost node and a rank that a signal has ended (killed by the kernel, a bus
    error), but not an exit code, memory that did not suffice or a termination. After the first end
    of a rank srun ends the others.
    """
    for line in messages.splitlines():
        if lost := _NODE_FAILURE.match(line):
            return lost[1]
        if ended := _ENDED_TASK.match(line):
            return None if _NOT_THE_NODE.match(ended[3]) else ended[1]
    return None


class EndedRank(NamedTuple):
    """The rank that ended first, its node, and srun's message about it."""

    rank: int
    node: str
    how: str


def first_ended(messages: str) -> EndedRank | None:
    """Return the rank that ended first, if srun names one; srun then ends the others."""
    ended = _ENDED_TASK.search(messages)
    return EndedRank(int(ended[2]), ended[1], ended[3]) if ended else None
