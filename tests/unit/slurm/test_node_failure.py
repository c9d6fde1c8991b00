"""The failed node, from messages as srun 22.05 writes them."""

import pytest

from slurm.node_failure import failed_node

TERMINATING = "srun: launch/slurm: _step_signal: Terminating StepId=7.0"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], None),
        (["srun: error: node2: task 3: Killed", TERMINATING], "node2"),
        (["srun: error: node2: task 3: Bus error (core dumped)"], "node2"),
        (["srun: error: Node failure on node1", "srun: error: node2: task 2: Killed"], "node1"),
        (["srun: error: node1: task 0: Exited with exit code 1", TERMINATING], None),
        (
            [
                "srun: error: node1: task 0: Exited with exit code 1",
                TERMINATING,
                "srun: error: node2: tasks 2-3: Killed",  # by srun itself
            ],
            None,
        ),
        (["srun: error: node1: task 0: Out Of Memory"], None),
        (["srun: error: node1: tasks 0-1: Terminated"], None),
    ],
)
def test_the_first_node_to_fail_is_returned(messages: list[str], expected: str | None) -> None:
    assert failed_node("\n".join(messages)) == expected
